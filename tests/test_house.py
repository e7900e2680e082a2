"""The house held by `ast`: floors, sizes, doors, docstrings, the README's map, and tests that mirror the tree.

`python tests/test_house.py` prints the map as the README should have it.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "core": 0,
    **dict.fromkeys(["nn", "optim", "loss", "text", "data"], 1),
    "lift": 2,
    **dict.fromkeys(["train", "infer", "evaluate", "interop"], 3),
    "config": 4,
    "pipeline": 5,
    **dict.fromkeys(["serve", "bench"], 6),
    **dict.fromkeys(["cli", "examples"], 7),
}
STANDARD_OR_SHAPES = {"torch", "jaxtyping"}
BACKENDS = {"cuda", "mps", "xpu"}
MAX_LINES, MAX_FUNCTION_LINES = 300, 60


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


HOUSE = sources("slm_fn", "cli")
EVERYWHERE = [*HOUSE, *sources("examples")]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room(path: Path) -> str:
    """`slm_fn/nn/gpt.py` is in nn, `slm_fn/config.py` in config, `cli/main.py` in cli."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "slm_fn" else parts[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, those inside functions included; relative ones made absolute."""
    package = ("slm_fn." if path.is_relative_to(ROOT / "cli") else "") + ".".join(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            # `from slm_fn import nn` enters a room by its name.
            yield from ((node.lineno, f"{module}.{a.name}" if module == "slm_fn" else module) for a in node.names)


def visible(node: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module. Methods may inherit what they say from what they override."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield child


def first_line(path: Path) -> str:
    return (ast.get_docstring(parse(path)) or "").partition("\n")[0]


def is_map_line(path: Path) -> bool:
    return path.name != "__init__.py" or bool(first_line(path))


def readme_map() -> str:
    """Every file with its docstring's first line, as it stands in the README."""
    listed = [path for path in HOUSE if is_map_line(path)]
    width = max(len(name(path)) for path in listed)
    return "\n".join(f"{name(path):<{width}}   {first_line(path)}" for path in listed)


by_file = pytest.mark.parametrize("path", EVERYWHERE, ids=name)
by_module = pytest.mark.parametrize("path", [p for p in HOUSE if p.name != "__init__.py"], ids=name)


@by_file
def test_imports_come_from_strictly_lower_floors_or_the_own_room(path):
    for line, module in imports(path):
        parts = module.split(".")
        if parts[0] != "slm_fn" or len(parts) == 1 or room(path) == "__init__":
            continue
        assert parts[1] in FLOORS, f"{name(path)}:{line} imports {module}, a room on no floor"
        lower = FLOORS[parts[1]] < FLOORS[room(path)]
        assert lower or parts[1] == room(path), f"{name(path)}:{line} imports {module}, which is not below"


@by_file
def test_core_knows_torch_and_the_standard_library_only(path):
    import sys

    if room(path) == "core":
        outside = {module.split(".")[0] for _, module in imports(path)} - STANDARD_OR_SHAPES - {"slm_fn"}
        assert outside <= sys.stdlib_module_names, f"{name(path)} imports {outside - sys.stdlib_module_names}"


@by_file
def test_a_file_fits_a_sitting_and_a_function_a_screen(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (60 if room(path) == "examples" else MAX_LINES), f"{name(path)} has {lines} lines"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            long = node.end_lineno - node.lineno + 1
            assert long <= MAX_FUNCTION_LINES, f"{name(path)}:{node.lineno} {node.name} has {long} lines"


@by_file
def test_only_core_device_names_a_backend(path):
    if name(path) == "slm_fn/core/device.py":
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0] in BACKENDS
        else:
            named = (
                isinstance(node, ast.Attribute)
                and node.attr in BACKENDS
                and ast.unparse(node.value) in ("torch", "torch.backends")
            )
        assert not named, f"{name(path)}:{node.lineno} names a backend: {ast.unparse(node)}"


@by_file
def test_nothing_runs_what_it_reads(path):
    for line, module in imports(path):
        assert module.split(".")[0] not in ("pickle", "dill", "cloudpickle", "marshal", "shelve"), (
            f"{name(path)}:{line}"
        )
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            banned = called in ("eval", "exec", "torch.load", "torch.save", "yaml.unsafe_load", "yaml.full_load")
            assert not banned, f"{name(path)}:{node.lineno} calls {called}"
            if called == "yaml.load":
                assert "SafeLoader" in path.read_text(encoding="utf-8"), f"{name(path)}:{node.lineno}: which loader?"


@by_module
def test_a_module_says_what_it_owns_and_one_invariant(path):
    docstring = ast.get_docstring(parse(path)) or ""
    first, _, rest = docstring.partition("\n")
    assert first.endswith("."), f"{name(path)}: the docstring's first line is its line in the map"
    assert re.search(r"^Invariant: \S", rest, re.M), f"{name(path)} states no `Invariant:`"


@by_module
def test_what_is_public_is_described(path):
    bare = [f"{name(path)}:{node.lineno} {node.name}" for node in visible(parse(path)) if not ast.get_docstring(node)]
    assert not bare


@by_module
def test_a_file_is_named_for_its_subject(path):
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


def test_the_readme_s_map_lists_every_file():
    want = dict(line.split(maxsplit=1) for line in readme_map().splitlines())
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    maps = [dict(re.findall(r"^((?:slm_fn|cli)/\S+\.py) +(\S.*?) *$", fence, re.M)) for fence in fences]
    got = max(maps, key=len, default={})
    assert got == want, f"the README's map should read:\n\n{readme_map()}\n"


def test_no_file_is_left_out_of_the_wheel():
    import tomllib

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    told = set(setup["packages"])
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in HOUSE}
    folders = {f"slm_fn.{folder}" if folder.startswith("cli") else folder for folder in folders}
    assert folders <= told
    beside = {path for path in (ROOT / "slm_fn").rglob("*.*") if path.suffix not in (".py", ".pyc")}
    for package, patterns in setup["package-data"].items():
        beside -= {path for pattern in patterns for path in ROOT.joinpath(*package.split(".")).glob(pattern)}
    assert not beside, "not in [tool.setuptools.package-data]"


def named(path: Path) -> set[str]:
    """What a test knows: every module and member it imports, in full, and every string it holds (commands to call)."""
    known = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            known |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            known.add(node.value)
    return known


def proofs(path: Path) -> list[Path]:
    """The tests that prove a file: its mirror, a law, or a suite of its room that imports it or calls its command."""
    parts = path.relative_to(ROOT).parts
    parts = parts[1:] if parts[0] == "slm_fn" else parts
    mirror = ROOT.joinpath("tests", *parts[:-1], f"test_{parts[-1]}")
    module = "slm_fn." + ".".join(parts).removesuffix(".py")
    wanted = {module, path.stem} if parts[0] == "cli" else {module}
    suites = [*sources("tests/laws"), *(sources(f"tests/{parts[0]}") if len(parts) > 1 else [])]
    return [mirror] * mirror.exists() + [suite for suite in suites if wanted & named(suite)]


@by_module
def test_every_file_has_its_tests(path):
    assert proofs(path), f"{name(path)} has no mirror under tests/, no law and no suite of its room"


if __name__ == "__main__":
    print(readme_map())
