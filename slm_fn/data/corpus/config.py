"""Corpus configs: what each source is, which of its documents to keep, and settings for all.

A source is a data set of the Hugging Face hub or local files and folders: text, chat or preference
pairs. Relative paths start at the current directory. `${VAR:-default}` and `~` are expanded in
`path` and `cache_dir`, and nowhere else.

Invariant: what `resolve` returns is complete and free of contradictions; no later code applies a
default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from slm_fn.data.chat import convert
from slm_fn.data.clean.minhash import DedupConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
LAYOUTS: dict[str, tuple[str, ...]] = {
    "text": (),
    "chat": tuple(convert.CHAT_LAYOUTS),
    "pairs": tuple(convert.PAIR_LAYOUTS),
}
"""The names of the layouts for each kind of source."""
Specs = tuple[str | dict[str, Any], ...]
"""Rules of `data/clean` or filters of `data/chat`, as YAML names them."""


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One source: exactly one of `hub` (the id of a data set) and `path` (a file or folder).

    Limits count what is kept: the source ends before the document that would exceed one. Fields
    that are None take the value of the same field of `CorpusConfig`.

    Attributes:
        hub: the id of a data set on the Hugging Face hub.
        config: the data set's configuration.
        split: the data set's split.
        revision: a commit, branch or tag of the data set.
        data_files: some of the data set's files alone.
        path: a local file or folder.
        kind: text, conversations (chat), or chosen and rejected replies (pairs).
        columns: text: the fields that hold it; several are joined by an empty line.
        url_column: the field that holds a record's URL, for `clean_url`.
        layout: chat, pairs: how the records are written, one of `LAYOUTS`; detected from the
            columns by default.
        languages: chat, pairs: the languages of OASST trees to keep; all by default.
        filters: chat: filters of `data/chat/filters.py`, applied after the rules of `clean`.
        max_documents: the most documents to keep.
        max_bytes: the most bytes of text to keep.
        max_tokens: the most tokens to keep, estimated by the corpus's `bytes_per_token`.
        clean: the rules that clean the text.
        clean_url: the rules for the records' URLs.
        normalize: the normal form of the text.
        lowercase: whether the text is converted to lower case.
        dedup: which duplicates are dropped.
        enabled: whether the source is prepared at all.
    """

    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | tuple[str, ...] | None = None
    path: str | None = None
    kind: Literal["text", "chat", "pairs"] = "text"
    columns: str | tuple[str, ...] = "text"
    url_column: str = "url"
    layout: str | None = None
    languages: tuple[str, ...] = ()
    filters: Specs = ()
    max_documents: int | None = None
    max_bytes: int | None = None
    max_tokens: int | None = None
    clean: Specs | None = None
    clean_url: Specs | None = None
    normalize: Literal["none", "unicode", "ascii", "transliterate"] | None = None
    lowercase: bool | None = None
    dedup: Literal["none", "exact", "near"] | None = None
    enabled: bool = True


class CorpusConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The input of `slm data prepare`: sources by name, in order, and settings for all of them.

    Attributes:
        sources: the sources by the names of their folders.
        clean: the rules that clean text.
        clean_url: the rules for the records' URLs.
        normalize: the normal form of the text.
        lowercase: whether text is converted to lower case.
        dedup: duplicates are dropped across all sources; of two documents the one that is read
            later. `near` finds near duplicates among the sources that request it too, and exact
            ones everywhere.
        near: how near duplicates are found.
        bytes_per_token: estimates tokens from bytes; `slm tokenizer inspect` measures it.
        part_bytes: the bytes of input behind each part file; as much is repeated after a crash.
        cache_dir: where `datasets` caches what it loads; by default its own folder (`HF_HOME`).
    """

    sources: dict[str, SourceConfig] = {}
    clean: Specs = ()
    clean_url: Specs = ()
    normalize: Literal["none", "unicode", "ascii", "transliterate"] = "unicode"
    lowercase: bool = False
    dedup: Literal["none", "exact", "near"] = "exact"
    near: DedupConfig = DedupConfig()
    bytes_per_token: float = 4.0
    part_bytes: int = 32 << 20
    cache_dir: str | None = None


def resolve(config: CorpusConfig) -> dict[str, SourceConfig]:
    """Return the enabled sources in order, each completed with the corpus's settings.

    The rules of `clean` and `clean_url` are for text: a source of another kind takes its own alone.

    Raises:
        ValueError: no source is enabled, a name is not valid as a folder's, or a source
            contradicts itself; names the source.
    """
    resolved = {}
    for name, source in config.sources.items():
        if source.enabled:
            resolved[name] = _complete(config, source)
    if not resolved:
        raise ValueError("the corpus has no enabled source; add one under `sources`")
    if config.part_bytes < 1 or config.bytes_per_token <= 0:
        raise ValueError("part_bytes and bytes_per_token must be positive")
    folded_names: dict[str, str] = {}
    for name, source in resolved.items():
        if not NAME.fullmatch(name):
            raise ValueError(
                f"source {name!r}: a name is letters, digits, dots, hyphens and underscores"
            )
        other = folded_names.setdefault(name.casefold(), name)
        if other != name:
            raise ValueError(
                f"sources {other!r} and {name!r}: their folders would be one; rename one"
            )
        contradiction = _find_contradiction(source)
        if contradiction is not None:
            raise ValueError(f"source {name!r}: {contradiction}")
    return resolved


def expand_path(text: str, variables: Mapping[str, str]) -> Path:
    """Return a path with `${NAME}` and `${NAME:-default}` replaced, and `~` as the home directory.

    Raises:
        ValueError: a variable without a default is not set.

    Example:
        >>> expand_path("${DATA:-corpora}/books", {}).as_posix()
        'corpora/books'
        >>> expand_path("${DATA:-corpora}/books", {"DATA": "d"}).as_posix()
        'd/books'
    """

    def replace_variable(match: re.Match[str]) -> str:
        name, default = match[1], match[2]
        value = variables.get(name) or default
        if value is None:
            raise ValueError(
                f"{text}: the variable {name} is not set; set it, or write ${{{name}:-default}}"
            )
        return value

    return Path(_VARIABLE.sub(replace_variable, text)).expanduser()


def _complete(config: CorpusConfig, source: SourceConfig) -> SourceConfig:
    is_text = source.kind == "text"
    values: dict[str, Any] = {
        "clean": config.clean if is_text else (),
        "clean_url": config.clean_url if is_text else (),
        "normalize": config.normalize,
        "lowercase": config.lowercase,
        "dedup": config.dedup,
    }
    for name in values:
        own_value = getattr(source, name)
        if own_value is not None:
            values[name] = own_value
    columns = (source.columns,) if isinstance(source.columns, str) else source.columns
    return msgspec.structs.replace(source, columns=columns, **values)


def _find_contradiction(source: SourceConfig) -> str | None:
    """Return what is wrong with a source, or None."""
    if (source.hub is None) == (source.path is None):
        return "needs exactly one of `hub` and `path`"
    has_hub_options = source.config or source.revision or source.data_files
    if source.path is not None and (has_hub_options or source.split != "train"):
        return "`config`, `split`, `revision` and `data_files` belong to a `hub` source"
    contradiction = _find_chat_contradiction(source)
    if contradiction is not None:
        return contradiction
    if not source.columns:
        return "`columns` is empty"
    limits = (source.max_documents, source.max_bytes, source.max_tokens)
    if any(limit is not None and limit < 1 for limit in limits):
        return "limits must be at least 1; to leave the source out set `enabled: false`"
    return None


def _find_chat_contradiction(source: SourceConfig) -> str | None:
    """Return what is wrong with a source's settings for chat and pairs, or None."""
    layouts = LAYOUTS[source.kind]
    if source.kind == "text" and (source.layout is not None or source.languages):
        return "`layout` and `languages` are not for text; set `kind: chat`"
    if source.layout is not None and source.layout not in layouts:
        return f"no layout {source.layout!r}; there are {', '.join(layouts)} for {source.kind}"
    if source.languages and source.layout not in (None, *convert.OASST_LAYOUTS):
        return (
            "`languages` are for OASST's trees; "
            f"rows of the layout {source.layout!r} have no language"
        )
    if source.filters and source.kind != "chat":
        return "`filters` are for conversations; set `kind: chat`"
    return None
