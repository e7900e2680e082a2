"""Configs: one immutable struct per part, nested by stage; load, override, origin of every value, hash.

A file is a road (`Config`) or, where it has the key `sources`, a corpus (`CorpusConfig`): `kind` tells them apart.

Invariant: every default stands in a struct beside the function it feeds; an unknown key is an error that names
the nearest one.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.resources import files as resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
import yaml

from slm_fn.data.corpus import CorpusConfig
from slm_fn.infer.sample import SampleConfig
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim.recipes import OptimConfig
from slm_fn.text.train import TokenizerConfig
from slm_fn.train.loop import TrainConfig

S = TypeVar("S", bound=msgspec.Struct)
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]
ASIDE = frozenset({"hooks", "tensorboard", "sharding"})  # a resumed run may change how it is watched and spread


class PretrainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Next-token training on packed text; with `isolate_documents` no token attends to another document's."""

    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    isolate_documents: bool = False
    label_smoothing: Share = 0.0


class SftConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Fine-tuning on conversations: the loss counts assistant tokens and their end alone.

    With `pack_rows` a row of a batch holds as many conversations as the context has room for, each read by itself. On
    the demo's chats padding falls from 73 % to 1 %, and a second trains 3.5 times as many tokens.
    """

    optim: OptimConfig = OptimConfig(learning_rate=3e-4)
    train: TrainConfig = TrainConfig(total_steps=300)
    val_fraction: Share = 0.0
    pack_rows: bool = True


class DpoConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Preference training: `beta` scales the implicit reward, `nll_weight` holds the chosen replies' likelihood up."""

    optim: OptimConfig = OptimConfig(learning_rate=1e-4)
    train: TrainConfig = TrainConfig(total_steps=100)
    beta: float = 0.1
    nll_weight: float = 0.0
    val_fraction: Share = 0.0


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole road in one file: each stage reads its own section."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    sft: SftConfig = SftConfig()
    dpo: DpoConfig = DpoConfig()
    sampling: SampleConfig = SampleConfig()


class _Loader(yaml.SafeLoader):
    """YAML whose `1e-4` is a number (YAML 1.1 wants a dot in it), and where a key stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen, wrong = set[Any](), partial(yaml.constructor.ConstructorError, None, None)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise wrong("a key is a list or mapping", key.start_mark)
            if key.value in seen:
                raise wrong(f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def kind(data: dict[str, Any]) -> type[Config] | type[CorpusConfig]:
    """The struct that a file's keys belong to."""
    return CorpusConfig if "sources" in data else Config


def presets(struct: type[msgspec.Struct] | None = None) -> list[str]:
    """The names of the configs that come with the package: all, or those of one struct."""
    folder = (path for path in resources("slm_fn.configs").iterdir() if path.name.endswith(".yaml"))
    found = {path.name.removesuffix(".yaml"): Path(str(path)) for path in folder}
    return sorted(name for name, path in found.items() if struct in (None, kind(read(path))))


def find(name: str | Path, struct: type[msgspec.Struct] | None = None) -> Path:
    """The file a config argument means: a path, or the name of a preset that comes with the package.

    Raises:
        FileNotFoundError: neither; names the presets (of `struct`, where one is wanted).
    """
    path = Path(name)
    if path.is_file():
        return path
    preset = resources("slm_fn.configs") / f"{name}.yaml"
    if "/" not in str(name) and preset.is_file():
        return Path(str(preset))
    raise FileNotFoundError(f"config {str(name)!r} is no file and no preset; presets: {', '.join(presets(struct))}")


def read(path: Path) -> dict[str, Any]:
    """A YAML, TOML or JSON file as a nested dict, by its ending.

    Raises:
        ValueError: another ending, or text that does not parse; says where.
    """
    try:
        text = path.read_text(encoding="utf-8")
        match path.suffix:
            case ".yaml" | ".yml":
                data = yaml.load(text, _Loader)
            case ".toml":
                data = tomllib.loads(text)
            case ".json":
                data = msgspec.json.decode(text)
            case other:
                raise ValueError(f"{path}: config files end in .yaml, .toml or .json, not {other!r}")
    except (yaml.YAMLError, tomllib.TOMLDecodeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: does not parse: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a config is a mapping of sections, this is a {type(data).__name__}")
    return data


def load(name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config of a file or preset with `path.to.key=value` overrides, checked as a whole.

    Raises:
        FileNotFoundError: no such file or preset.
        ValueError: an unknown key (names the nearest one), a value of the wrong type, an override without `=`.

    Example:
        >>> load("tiny", ["pretrain.optim.learning_rate=1e-4"]).pretrain.optim.learning_rate
        0.0001
    """
    return load_as(Config, name, overrides)


def load_as(struct: type[S], name: str | Path, overrides: Sequence[str] = ()) -> S:
    """The same for any struct, as the corpora of `slm data prepare`.

    Example:
        >>> load_as(CorpusConfig, "corpus", ["sources.oasst.max_documents=10"]).sources["oasst"].max_documents
        10
    """
    path = find(name, struct)
    data = read(path)
    if struct is Config and kind(data) is CorpusConfig:
        raise ValueError(f"{path}: a corpus, for `slm data prepare`; to train take {', '.join(presets(Config))}")
    return convert(override(data, overrides), str(path), struct)


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The dict with `path.to.key=value` items set; values are read as YAML scalars."""
    for item in overrides:
        dotted, found, text = item.partition("=")
        if not found or not dotted:
            raise ValueError(f"--set {item!r}: write it as path.to.key=value, as in pretrain.train.total_steps=100")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError:
            raise ValueError(f"--set {item!r}: this is no YAML; text that begins with *, & or % wants quotes") from None
        data = _set_in(data, dotted.split("."), value)
    return data


def _set_in(data: Any, keys: list[str], value: Any) -> dict[str, Any]:
    inner = data if isinstance(data, dict) else {}
    return {**inner, keys[0]: value if len(keys) == 1 else _set_in(inner.get(keys[0]), keys[1:], value)}


def convert(data: dict[str, Any], where: str, struct: type[S]) -> S:
    """A nested dict as a struct; `where` begins the error line."""
    _check_keys(data, struct, where, struct, "")
    try:
        return msgspec.convert(data, struct)
    except msgspec.ValidationError as error:
        raise ValueError(f"{where}: {str(error).replace('`$.', '`')}") from None


def _check_keys(data: Any, kind: Any, where: str, root: type, section: str) -> None:
    """Go through the dict along the struct's types; the first key or word that no field knows is told."""
    if get_origin(kind) is Literal and isinstance(data, str) and data not in get_args(kind):
        raise ValueError(f"{where}: {section} is one of {', '.join(get_args(kind))}, not {data!r}")
    if get_origin(kind) is tuple and isinstance(data, list):
        for item in data:
            _check_keys(item, get_args(kind)[0], where, root, section)
    inner, entries = _struct_in(kind)
    if inner is None or not isinstance(data, dict):
        return
    if entries:
        for name, value in data.items():
            _check_keys(value, inner, where, root, f"{section}.{name}")
        return
    fields = {field.name: field.type for field in msgspec.structs.fields(inner)}
    for key, value in data.items():
        if key not in fields:
            inside = f"in [{section}]" if section else "at the top level"
            raise ValueError(f"{where}: unknown key {str(key)!r} {inside}; {_hint(str(key), inner, root)}")
        _check_keys(value, fields[key], where, root, f"{section}.{key}" if section else key)


def _struct_in(kind: Any) -> tuple[type[msgspec.Struct] | None, bool]:
    """The struct that a field's type holds, alone, beside None, or as a dict's values; and whether it is the last."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return kind, False
    held = next((arg for arg in get_args(kind) if _struct_in(arg)[0]), None)
    return (_struct_in(held)[0], get_origin(kind) is dict) if held is not None else (None, False)


def _hint(key: str, here: type[msgspec.Struct], root: type[msgspec.Struct]) -> str:
    known = [field.name for field in msgspec.structs.fields(here)]
    places = [path.rpartition(".")[::2] for path in _keys(root)]
    elsewhere = [section for section, name in places if name == key]
    if elsewhere:
        return f"it belongs {' or '.join(f'under {path}' if path else 'at the top level' for path in elsewhere)}"
    every = [name for _, name in places]
    near = [*difflib.get_close_matches(key, known, 1), *difflib.get_close_matches(key, every, 1)]
    return f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"


def _keys(struct: type[msgspec.Struct], path: str = "") -> Iterator[str]:
    """The dotted path of every value that a struct holds; the names in a dict are written as NAME."""
    for field in msgspec.structs.fields(struct):
        here = f"{path}.{field.name}" if path else field.name
        inner, entries = _struct_in(field.type)
        if inner is None:
            yield here
        else:
            yield from _keys(inner, f"{here}.NAME" if entries else here)


def walk(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with its dotted path."""
    named = config if isinstance(config, dict) else msgspec.structs.asdict(config)
    for name, value in named.items():
        here = f"{path}.{name}" if path else name
        if isinstance(value, msgspec.Struct) or (isinstance(value, dict) and value):
            yield from walk(value, here)
        else:
            yield here, value


def origins(name: str | Path, overrides: Sequence[str] = ()) -> list[tuple[str, Any, str]]:
    """Every value of a config with where it came from: default, file or flag."""
    path = find(name)
    in_file, flags = read(path), {item.partition("=")[0] for item in overrides}

    def origin(dotted: str) -> str:
        if dotted in flags:
            return "flag"
        place: Any = in_file
        for key in dotted.split("."):
            if not isinstance(place, dict) or key not in place:
                return "default"
            place = place[key]
        return path.name

    return [(dotted, value, origin(dotted)) for dotted, value in walk(load_as(kind(in_file), name, overrides))]


def digest(config: msgspec.Struct) -> str:
    """A SHA-256 of every value but `ASIDE`: runs with equal hashes go the same way, however they are watched."""
    told = {dotted: value for dotted, value in walk(config) if ASIDE.isdisjoint(dotted.split("."))}
    return hashlib.sha256(msgspec.json.encode(told, order="sorted")).hexdigest()


def to_yaml(config: msgspec.Struct) -> str:
    """The complete config as YAML that loads back to the same struct."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)
