"""Config files as nested dicts: YAML, TOML or JSON, by their endings.

Invariant: a number is a number in all three formats, and a duplicate key in YAML is an error.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import yaml


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number (YAML 1.1 wants a dot) and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _yaml_error("a key is a list or mapping", key)
            if key.value in keys:
                raise _yaml_error(f"duplicate key {key.value!r}", key)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _yaml_error(message: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.inf|\.nan)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """A YAML text as plain values.

    Raises:
        yaml.YAMLError: the text is not YAML, or has a duplicate key.

    Example:
        >>> parse_yaml("{learning_rate: 1e-4}")
        {'learning_rate': 0.0001}
    """
    return yaml.load(text, _Loader)  # a SafeLoader


def read(path: Path) -> dict[str, Any]:
    """A YAML, TOML or JSON file, by its ending, as a nested dict.

    Raises:
        ValueError: another ending, or text that does not parse; says where.
    """
    try:
        data = _parse(path, path.read_text(encoding="utf-8"))
    except (
        yaml.YAMLError,
        tomllib.TOMLDecodeError,
        msgspec.DecodeError,
        UnicodeDecodeError,
    ) as error:
        raise ValueError(f"{path}: does not parse: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        actual = type(data).__name__
        raise ValueError(f"{path}: a config is a mapping of sections, this is a {actual}")
    return data


def _parse(path: Path, text: str) -> Any:
    match path.suffix:
        case ".yaml" | ".yml":
            return parse_yaml(text)
        case ".toml":
            return tomllib.loads(text)
        case ".json":
            return msgspec.json.decode(text)
        case other:
            raise ValueError(f"{path}: config files end in .yaml, .toml or .json, not {other!r}")
