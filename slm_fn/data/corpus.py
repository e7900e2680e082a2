"""Corpora from YAML: what each source is, which of its documents are wanted, and what holds for all.

A source is a data set of the Hugging Face hub or files and folders here: text, chat or pairs. Relative paths are taken
from where the command runs. `${VAR:-default}` and `~` are expanded in `path` and `cache_dir`, and nowhere else.

Invariant: what `resolve` returns is complete and free of contradictions; nothing behind it looks for a default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from slm_fn.data import convert
from slm_fn.data.minhash import DedupConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
LAYOUTS: dict[str, tuple[str, ...]] = {"text": (), "chat": tuple(convert.CHAT), "pairs": tuple(convert.PAIRS)}
"""The names of layouts by the kind of source whose rows they yield."""
Specs = tuple[str | dict[str, Any], ...]
"""Rules of `data/clean.py` as YAML names them."""


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One source: exactly one of `hub` (the id of a data set) and `path` (a file or folder).

    Limits count what is kept: the source ends before the document that would go beyond one. What is left out stands
    in `CorpusConfig`, whose `clean`, `normalize` and `dedup` hold for every source that has none of its own.

    Attributes:
        config, split, revision, data_files: of a data set on the hub; the last is for some of its files alone.
        columns: text: where it stands in a record; several are joined by an empty line.
        url_column: where a record's address stands, for `clean_url`.
        kind: text, conversations, or preferred and rejected replies.
        layout: chat, pairs: how the records are written, one of `LAYOUTS`; by default it is told by the columns.
        languages: chat, pairs: the trees of OASST in one of these; all where there are none.
        filters: chat: of `data/filters.py`, over what the rules of `clean` left.
        max_tokens: estimated, `bytes_per_token` of the corpus to each.
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
    """What `slm data prepare` makes: sources by name, in order, and what holds for all of them.

    Attributes:
        dedup: duplicates are dropped over all sources, of two the one that was read later. `near` finds near ones among
            sources that say so too, exact ones everywhere.
        bytes_per_token: to estimate tokens by; `slm tokenizer inspect` measures it.
        part_bytes: a part file holds what this many bytes of input left; as much is done again after a crash.
        cache_dir: where `datasets` keeps what it loads; left out, it has its own place (`HF_HOME`).
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
    """The enabled sources in their order, each complete: what it leaves out is the corpus's.

    The rules of `clean` and `clean_url` are for text: another source takes its own alone.

    Raises:
        ValueError: no source, a name that cannot be a folder's, or a source that contradicts itself; names it.
    """
    found = {name: _complete(config, source) for name, source in config.sources.items() if source.enabled}
    if not found:
        raise ValueError("the corpus has no enabled source; add one under `sources`")
    if config.part_bytes < 1 or config.bytes_per_token <= 0:
        raise ValueError("part_bytes and bytes_per_token must be positive")
    folded: dict[str, str] = {}
    for name, source in found.items():
        if not NAME.fullmatch(name):
            raise ValueError(f"source {name!r}: a name is letters, digits, dots, hyphens and underscores")
        if folded.setdefault(name.casefold(), name) != name:
            raise ValueError(
                f"sources {folded[name.casefold()]!r} and {name!r}: their folders would be one; rename one"
            )
        wrong = _contradiction(source)
        if wrong:
            raise ValueError(f"source {name!r}: {wrong}")
    return found


def _complete(config: CorpusConfig, source: SourceConfig) -> SourceConfig:
    spoken = source.kind != "text"
    default = {
        "clean": () if spoken else config.clean,
        "clean_url": () if spoken else config.clean_url,
        "normalize": config.normalize,
        "lowercase": config.lowercase,
        "dedup": config.dedup,
    }
    columns = (source.columns,) if isinstance(source.columns, str) else source.columns
    given = {name: value for name in default if (value := getattr(source, name)) is not None}
    return msgspec.structs.replace(source, columns=columns, **default | given)


def _contradiction(source: SourceConfig) -> str | None:
    limits = (source.max_documents, source.max_bytes, source.max_tokens)
    if (source.hub is None) == (source.path is None):
        return "needs exactly one of `hub` and `path`"
    if source.path is not None and (source.config or source.revision or source.data_files or source.split != "train"):
        return "`config`, `split`, `revision` and `data_files` belong to a `hub` source"
    if source.kind == "text" and (source.layout is not None or source.languages):
        return "`layout` and `languages` are not for text; say `kind: chat`"
    if source.layout is not None and source.layout not in LAYOUTS[source.kind]:
        return f"no layout {source.layout!r}; there are {', '.join(LAYOUTS[source.kind])} for {source.kind}"
    if source.languages and source.layout not in (None, "oasst", "oasst_pairs"):
        return f"`languages` are for OASST's trees; rows of the layout {source.layout!r} do not say theirs"
    if source.filters and source.kind != "chat":
        return "`filters` are for conversations; say `kind: chat`"
    if not source.columns:
        return "`columns` is empty"
    if any(limit is not None and limit < 1 for limit in limits):
        return "limits must be at least 1; to leave it out say `enabled: false`"
    return None


def expand(text: str, variables: Mapping[str, str]) -> Path:
    """A path with `${NAME}` and `${NAME:-default}` filled in, and `~` as the home.

    Raises:
        ValueError: a variable without a default is not set.

    Example:
        >>> expand("${DATA:-corpora}/books", {}).as_posix(), expand("${DATA:-corpora}/books", {"DATA": "d"}).as_posix()
        ('corpora/books', 'd/books')
    """

    def value(match: re.Match[str]) -> str:
        found = variables.get(match[1]) or match[2]
        if found is None:
            raise ValueError(f"{text}: the variable {match[1]} is not set; set it, or write ${{{match[1]}:-default}}")
        return found

    return Path(_VARIABLE.sub(value, text)).expanduser()
