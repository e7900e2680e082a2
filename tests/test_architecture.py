"""The architecture, checked by `ast`: layers, order inside packages, sizes, docstrings, mirrors.

`python tests/test_architecture.py` prints the file map as the README should have it.
"""

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {
    "core": 0,
    **dict.fromkeys(["nn", "optim", "loss", "text"], 1),
    **dict.fromkeys(["lift", "data"], 2),
    **dict.fromkeys(["train", "infer", "evaluate", "interop"], 3),
    "config": 4,
    "pipeline": 5,
    **dict.fromkeys(["serve", "bench"], 6),
    **dict.fromkeys(["cli", "examples"], 7),
}
CORE_MAY_IMPORT = {"torch", "jaxtyping", "slm_fn", *sys.stdlib_module_names}
BACKENDS = {"cuda", "mps", "xpu"}
MAX_FILE_LINES = 400
MAX_EXAMPLE_LINES = 80
MAX_FUNCTION_LINES = 60
MAX_FILES_IN_A_PACKAGE = 14
UNPICKLERS = {"pickle", "dill", "cloudpickle", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save", "yaml.unsafe_load", "yaml.full_load"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


PACKAGE_FILES = sources("slm_fn", "cli")
MODULES = [path for path in PACKAGE_FILES if path.name != "__init__.py"]
ALL_FILES = [*PACKAGE_FILES, *sources("examples")]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_parts(path: Path) -> list[str]:
    """`slm_fn/nn/gpt.py` is `["nn", "gpt"]`, `cli/main.py` is `["cli", "main"]`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return list(parts[1:] if parts[0] == "slm_fn" else parts)


def layer_name(path: Path) -> str:
    """The package or top-level module whose layer a file belongs to."""
    return module_parts(path)[0]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), name(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import in a file, also of those inside functions.

    `from slm_fn.data import io` gives `slm_fn.data.io`: what is imported may be a module, and then
    it counts as one.
    """
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(path)}:{node.lineno}: imports are absolute"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def own_imports(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, names below `slm_fn`) of the imports of this project's own modules."""
    for line, module in imports(path):
        package, *parts = module.split(".")
        if package == "slm_fn" and parts:
            yield line, parts


def stated_order(package: Path) -> list[str]:
    """The names in the `Order:` line of a package's docstring, lowest first.

    Empty if it states none.
    """
    docstring = ast.get_docstring(parse(package / "__init__.py")) or ""
    order = re.search(r"^Order: ([^.]+)\.$", docstring, re.MULTILINE)
    return re.split(r",\s+", order[1]) if order else []


def public_definitions(
    tree: ast.Module,
) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Public functions and classes of a module.

    Methods may inherit their docstring from what they override.
    """
    for node in tree.body:
        is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not is_definition or node.name.startswith("_"):
            continue
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        if "overload" not in decorators:
            yield node


def first_line(path: Path) -> str:
    return (ast.get_docstring(parse(path)) or "").partition("\n")[0]


def file_map() -> str:
    """Every module with the first line of its docstring, as it stands in the README."""
    width = max(len(name(path)) for path in MODULES)
    return "\n".join(f"{name(path):<{width}}   {first_line(path)}" for path in MODULES)


for_every_file = pytest.mark.parametrize("path", ALL_FILES, ids=name)
for_every_module = pytest.mark.parametrize("path", MODULES, ids=name)
PACKAGES_WITH_PACKAGES = [
    path.parent
    for path in sources("slm_fn")
    if path.name == "__init__.py"
    and path.parent.name != "slm_fn"
    and list(path.parent.glob("*/__init__.py"))
]


@for_every_file
def test_imports_come_from_strictly_lower_layers_or_the_own_package(path):
    if path == ROOT / "slm_fn" / "__init__.py":
        return
    own = layer_name(path)
    for line, (imported, *_) in own_imports(path):
        assert imported in LAYERS, f"{name(path)}:{line} imports {imported}, which is on no layer"
        is_below = LAYERS[imported] < LAYERS[own]
        assert is_below or imported == own, f"{name(path)}:{line} imports {imported}, not below"


@pytest.mark.parametrize("package", PACKAGES_WITH_PACKAGES, ids=name)
def test_a_package_with_sub_packages_states_its_order_and_keeps_it(package):
    order = stated_order(package)
    entries = {path.stem for path in package.glob("*.py")} - {"__init__"}
    entries |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert set(order) == entries, f"{name(package)}/__init__.py: its Order line names {order}"
    prefix = module_parts(package)
    for path in sources(name(package)):
        own = module_parts(path)[len(prefix)]
        if own == "__init__":
            continue
        for line, parts in own_imports(path):
            if parts[: len(prefix)] != prefix or len(parts) == len(prefix):
                continue
            imported = parts[len(prefix)]
            is_below = order.index(imported) <= order.index(own)
            assert is_below, f"{name(path)}:{line} imports {imported}, which comes after {own}"


@for_every_file
def test_core_imports_torch_and_the_standard_library_only(path):
    if layer_name(path) == "core":
        roots = {module.split(".")[0] for _, module in imports(path)}
        assert roots <= CORE_MAY_IMPORT, f"{name(path)} imports {roots - CORE_MAY_IMPORT}"


@for_every_file
def test_files_and_functions_are_short(path):
    num_lines = len(path.read_text(encoding="utf-8").splitlines())
    limit = MAX_EXAMPLE_LINES if layer_name(path) == "examples" else MAX_FILE_LINES
    assert num_lines <= limit, f"{name(path)} has {num_lines} lines"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            where = f"{name(path)}:{node.lineno} {node.name}"
            assert length <= MAX_FUNCTION_LINES, f"{where} has {length} lines"


def test_packages_are_small():
    sizes = Counter(path.parent for path in PACKAGE_FILES)
    crowded = {
        name(folder): size for folder, size in sizes.items() if size > MAX_FILES_IN_A_PACKAGE
    }
    assert not crowded


def test_no_two_public_classes_have_one_name():
    owners: dict[str, list[str]] = {}
    for path in MODULES:
        for node in public_definitions(parse(path)):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(name(path))
    assert not {class_name: paths for class_name, paths in owners.items() if len(paths) > 1}


@for_every_file
def test_only_core_device_names_a_backend(path):
    if name(path) == "slm_fn/core/device.py":
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names_one = node.value.partition(":")[0] in BACKENDS
        elif isinstance(node, ast.Attribute) and node.attr in BACKENDS:
            names_one = ast.unparse(node.value) in ("torch", "torch.backends")
        else:
            names_one = False
        assert not names_one, f"{name(path)}:{node.lineno} names a backend: {ast.unparse(node)}"


@for_every_file
def test_no_file_can_execute_what_it_reads(path):
    for line, module in imports(path):
        assert module.split(".")[0] not in UNPICKLERS, f"{name(path)}:{line} imports {module}"
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in UNSAFE_CALLS, f"{name(path)}:{node.lineno} calls {called}"
            if called == "yaml.load":
                is_safe = "SafeLoader" in path.read_text(encoding="utf-8")
                assert is_safe, f"{name(path)}:{node.lineno} loads YAML by which loader?"


@for_every_module
def test_a_module_docstring_states_its_subject_and_one_invariant(path):
    docstring = ast.get_docstring(parse(path)) or ""
    assert first_line(path).endswith("."), f"{name(path)}: the first line is a sentence"
    assert re.search(r"^Invariant: \S", docstring, re.MULTILINE), f"{name(path)}: no `Invariant:`"


@for_every_module
def test_everything_public_has_a_docstring(path):
    bare = [node.name for node in public_definitions(parse(path)) if not ast.get_docstring(node)]
    assert not bare, name(path)


@for_every_module
def test_a_file_is_named_for_its_subject(path):
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


def test_the_file_map_of_the_readme_lists_every_module():
    want = dict(line.split(maxsplit=1) for line in file_map().splitlines())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    fences = re.findall(r"^```[^\n]*\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    map_line = re.compile(r"^((?:slm_fn|cli)/\S+\.py) +(\S.*?) *$", re.MULTILINE)
    got = max((dict(map_line.findall(fence)) for fence in fences), key=len, default={})
    assert got == want, f"the README's file map should read:\n\n{file_map()}\n"


def test_no_file_is_left_out_of_the_wheel():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    setuptools = project["tool"]["setuptools"]
    folders = {name(path.parent).replace("/", ".") for path in PACKAGE_FILES}
    packages = {f"slm_fn.{folder}" if folder.startswith("cli") else folder for folder in folders}
    assert packages <= set(setuptools["packages"])
    data_files = {
        path for path in (ROOT / "slm_fn").rglob("*.*") if path.suffix not in (".py", ".pyc")
    }
    for package, patterns in setuptools["package-data"].items():
        for pattern in patterns:
            data_files -= set(ROOT.joinpath(*package.split(".")).glob(pattern))
    assert not data_files, "not in [tool.setuptools.package-data]"


def names_used(path: Path) -> set[str]:
    """Every module and member that a test imports, and every string in it, such as commands."""
    used = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            used |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used.add(node.value)
    return used


def covering_tests(path: Path) -> list[Path]:
    """The tests of a module.

    Its mirror, or a law or a test of its package that imports it or calls its command.
    """
    parts = path.relative_to(ROOT).parts
    parts = parts[1:] if parts[0] == "slm_fn" else parts
    mirror = ROOT.joinpath("tests", *parts[:-1], f"test_{parts[-1]}")
    wanted = {"slm_fn." + ".".join(parts).removesuffix(".py")}
    if parts[0] == "cli":
        wanted.add(path.stem)
    candidates = sources("tests/laws")
    if len(parts) > 1:
        candidates += sources(f"tests/{parts[0]}")
    found = [candidate for candidate in candidates if wanted & names_used(candidate)]
    return [mirror, *found] if mirror.exists() else found


@for_every_module
def test_every_module_has_tests(path):
    assert covering_tests(path), (
        f"{name(path)} has no mirror under tests/, no law, no test of its package"
    )


@pytest.mark.parametrize("path", sources("tests"), ids=name)
def test_a_mirrored_test_folder_has_its_package(path):
    """A test of a module lies where the module lies, so that it is found."""
    parts = path.relative_to(ROOT / "tests").parts[:-1]
    if parts and parts[0] in LAYERS:
        folder = (
            ROOT.joinpath(*parts)
            if parts[0] in ("cli", "examples")
            else ROOT.joinpath("slm_fn", *parts)
        )
        assert folder.is_dir(), f"{name(path)} mirrors {name(folder)}, which does not exist"


if __name__ == "__main__":
    print(file_map())
