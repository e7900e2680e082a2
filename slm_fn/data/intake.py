"""The rows of a corpus's source as they stream in, from the hub or from files, with what was told on the way.

Invariant: the rows of a source come in one order, so that a number of rows is a place to go on from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from slm_fn.data import convert, hub, sources
from slm_fn.data.corpus import LAYOUTS, SourceConfig, expand
from slm_fn.data.formats import shown
from slm_fn.data.sources import Conversation, Document, Preference

MISSING = object()
Item = Document | Conversation | Preference


class Row(NamedTuple):
    """What one step of a source gave: an item, or none; its address; and what was told since the step before.

    `problems` are lines for a person; `dropped` are the reasons of the converter, to be counted; `place` is where
    the hub can go on, at this row or before it.
    """

    item: Item | None
    url: str = ""
    problems: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    place: hub.Place | None = None


def identity(source: SourceConfig) -> dict[str, Any]:
    """What the rows depend on beside the settings: the names and sizes of files here that can be read.

    Raises:
        FileNotFoundError, ValueError: nothing at the path, or a file of another kind.
    """
    if source.path is None:
        return {}
    path = expand(source.path, os.environ)
    found = sources.files_of(path, lambda line: None)  # told where they are read
    named = [(shown(f.relative_to(path).as_posix() if f != path else f.name), f.stat().st_size) for f in found]
    total = sum(size for _, size in named)
    return {"files": len(named), "bytes": total, "digest": hashlib.sha256(msgspec.json.encode(named)).hexdigest()}


def pin(source: SourceConfig, note: sources.Problem = lambda line: None) -> dict[str, Any]:
    """The commit of a data set on the hub that is to be read, however long that takes; of files here, `identity`.

    Raises:
        FileNotFoundError, ValueError: the hub does not answer, or has no such set.
    """
    if source.hub is None:
        return identity(source)
    if "/" not in source.hub and source.data_files is not None:  # a format of `datasets`, for files that are named
        return {}
    return {"revision": hub.commit(source.hub, source.revision, problem=note)}


def rows(
    source: SourceConfig,
    done: int = 0,
    cache_dir: Path | None = None,
    place: hub.Place | None = None,
    note: sources.Problem = lambda line: None,
) -> Iterator[Row]:
    """The rows of a complete source from the `done`-th on.

    Text from the hub is asked for from there on; files, and chat and pairs, are read again and passed over.

    Args:
        place: the last one that a row before the `done`-th held.
        note: is told when the network fails and how long the wait is.

    Raises:
        FileNotFoundError, ValueError: nothing of it can be read; what is wrong with a part of it is told in rows.
    """
    problems: list[str] = []
    places: list[hub.Place] = []
    from_hub = source.hub is not None and source.kind == "text"
    if source.kind == "text" and not from_hub and len(source.columns) == 1 and not source.clean_url:
        found = sources.read([_path(source)], problems.append, column=source.columns[0])
        return islice(_documents(found, problems), done, None)
    first = done if from_hub else 0
    if source.hub is None:
        records = sources.rows(_path(source), problems.append)
    else:
        records = hub.rows(
            source.hub,
            source.config,
            source.split,
            revision=source.revision,
            skip=first,
            place=place if from_hub else None,
            mark=places.append,
            data_files=source.data_files,
            cache_dir=cache_dir,
            problem=note,
        )
    if source.kind == "text":
        return islice(_text_rows(source, records, problems, first, places), done - first, None)
    return islice(_spoken_rows(source, records, problems), done, None)


def _documents(documents: Iterable[Document], problems: list[str]) -> Iterator[Row]:
    for document in documents:
        yield Row(document, "", _taken(problems))
    if problems:
        yield Row(None, "", _taken(problems))


def _text_rows(
    source: SourceConfig,
    records: Iterator[dict[str, Any]],
    problems: list[str],
    first: int,
    places: list[hub.Place],
) -> Iterator[Row]:
    """Records as documents, one row each, so that a row's number is its record's."""
    named = source.hub or _path(source).name
    for number, record in enumerate(records, first + 1):
        texts = [record.get(column, MISSING) for column in source.columns]
        if number == 1 and MISSING in texts:
            wanted = source.columns[texts.index(MISSING)]
            raise ValueError(f"{named}: no column {wanted!r}; there are {', '.join(map(str, record))}")
        if not all(isinstance(text, str | None) for text in texts):
            problems.append(f"{named}, row {number}: no text in the column {' or '.join(source.columns)}; left out")
            texts = []
        text = "\n\n".join(text for text in texts if text and not text.isspace())
        url = record.get(source.url_column)
        item = Document(f"{named}:{number}", text) if text else None
        place = places.pop() if places else None
        yield Row(item, url if isinstance(url, str) else "", _taken(problems), place=place)
    if problems:
        yield Row(None, "", _taken(problems))


def _spoken_rows(source: SourceConfig, records: Iterator[dict[str, Any]], problems: list[str]) -> Iterator[Row]:
    dropped: list[str] = []
    layout = source.layout
    if layout is None:
        head = next(records, None)
        if head is None:
            raise ValueError(f"{source.hub or source.path}: no rows")
        layout, records = convert.detect(head), chain([head], records)
        layout = "oasst_pairs" if (layout, source.kind) == ("oasst", "pairs") else layout
        if layout not in LAYOUTS[source.kind]:
            held = "conversations, no preferences" if source.kind == "pairs" else "preferences, no conversations"
            raise ValueError(f"{source.hub or source.path}: the layout {layout!r} holds {held}")
    only: dict[str, Any] = {"languages": source.languages} if layout in ("oasst", "oasst_pairs") else {}
    for item in convert.LAYOUTS[layout](records, dropped.append, **only):
        yield Row(item, "", _taken(problems), _taken(dropped))
    if problems or dropped:
        yield Row(None, "", _taken(problems), _taken(dropped))


def _path(source: SourceConfig) -> Path:
    return expand(str(source.path), os.environ)


def _taken(told: list[str]) -> tuple[str, ...]:
    taken = tuple(told)
    told.clear()
    return taken
