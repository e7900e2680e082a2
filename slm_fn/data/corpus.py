"""Corpora from YAML: what each source is, which of its documents are wanted, and its rows as they stream in.

A source is a data set of the Hugging Face hub or files and folders here; text or chat. Relative paths are taken from
where the command runs. `${VAR:-default}` and `~` are expanded in `path` and `cache_dir`, and nowhere else.

Invariant: the rows of a source come in one order, so that a number of rows is a place to go on from.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from slm_fn.data import convert, hub, sources
from slm_fn.data.sources import Conversation, Document

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
Told = Callable[[str], None]
Specs = tuple[str | dict[str, Any], ...]
"""Rules of `data/clean.py` as YAML names them."""


class SourceConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One source: exactly one of `hub` (the id of a data set) and `path` (a file or folder).

    Limits count what is kept: the source ends before the document that would go beyond one. What is left out stands
    in `CorpusConfig`, whose `clean`, `normalize` and `dedup` hold for every source that has none of its own.

    Attributes:
        config, split, revision: of a data set on the hub.
        columns: text: where it stands in a record; several are joined by an empty line.
        url_column: where a record's address stands, for `clean_url`.
        layout: chat: how the records are written, one of `data/convert.py`; by default it is told by the columns.
        max_tokens: estimated, `bytes_per_token` of the corpus to each.
    """

    hub: str | None = None
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    path: str | None = None
    kind: Literal["text", "chat"] = "text"
    columns: str | tuple[str, ...] = "text"
    url_column: str = "url"
    layout: str | None = None
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
        dedup: exact or near duplicates are dropped over all sources; of two, the one that was read first stays.
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
    bytes_per_token: float = 4.0
    part_bytes: int = 32 << 20
    seed: int = 0
    cache_dir: str | None = None
