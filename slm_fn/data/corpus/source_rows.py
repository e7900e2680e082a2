"""The rows of a corpus's source, streamed from the hub or from files, with the problems between.

Invariant: the rows of a source come in one order, so a number of rows is a position to resume from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from slm_fn.data.chat import convert
from slm_fn.data.chat.records import Conversation, PreferencePair
from slm_fn.data.corpus.config import LAYOUTS, SourceConfig, expand_path
from slm_fn.data.io import documents, folders, hub, typed_rows
from slm_fn.data.io.documents import Document
from slm_fn.data.io.formats import printable_path
from slm_fn.data.io.hub import HubDataset, RetryPolicy, StreamCursor
from slm_fn.data.io.problems import OnProblem

Item = Document | Conversation | PreferencePair
Record = dict[str, Any]
_MISSING = object()


class SourceRow(NamedTuple):
    """One step of a source: an item, and what was reported since the step before.

    Attributes:
        item: the document, conversation or pair; None for a row that gave none.
        url: the record's URL, or an empty string.
        problems: lines about input that could not be read.
        dropped: the reasons of the chat converter, to be counted.
        cursor: a position, at this row or before it, from which the hub can resume.
    """

    item: Item | None
    url: str = ""
    problems: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    cursor: StreamCursor | None = None


class _Pending:
    """What was reported since the last row: problems, reasons for drops, and cursors of the hub."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.dropped: list[str] = []
        self.cursors: list[StreamCursor] = []

    def take_row(self, item: Item | None, url: str = "") -> SourceRow:
        """Return a row with what is pending, which is cleared."""
        row = SourceRow(
            item,
            url,
            problems=tuple(self.problems),
            dropped=tuple(self.dropped),
            cursor=self.cursors.pop() if self.cursors else None,
        )
        self.problems.clear()
        self.dropped.clear()
        return row

    def take_last_row(self) -> Iterator[SourceRow]:
        """Yield a row without an item for what was reported after the last item, if anything."""
        if self.problems or self.dropped:
            yield SourceRow(None, "", tuple(self.problems), tuple(self.dropped))


def fingerprint_files(source: SourceConfig) -> dict[str, Any]:
    """Return what a local source's rows depend on beside its settings: file names and sizes.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the path is a file of another kind.
    """
    if source.path is None:
        return {}
    path = expand_path(source.path, os.environ)
    files = folders.list_files(path, _ignore)  # problems are reported when the files are read
    sizes = []
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        sizes.append((printable_path(name), file.stat().st_size))
    return {
        "files": len(sizes),
        "bytes": sum(size for _, size in sizes),
        "digest": hashlib.sha256(msgspec.json.encode(sizes)).hexdigest(),
    }


def pin_revision(source: SourceConfig, on_problem: OnProblem | None = None) -> dict[str, Any]:
    """Return the commit of a hub data set that is to be read; for local files, their fingerprint.

    Args:
        on_problem: receives one line per network failure.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the hub does not answer, or has no such data set.
    """
    if source.hub is None:
        return fingerprint_files(source)
    is_local_format = "/" not in source.hub and source.data_files is not None
    if is_local_format:
        return {}
    retry = RetryPolicy(on_problem=on_problem)
    return {"revision": hub.resolve_commit(source.hub, source.revision, retry)}


def read_rows(
    source: SourceConfig,
    skip: int = 0,
    cache_dir: Path | None = None,
    cursor: StreamCursor | None = None,
    on_network_problem: OnProblem | None = None,
) -> Iterator[SourceRow]:
    """Iterate over the rows of a source, as `resolve` completed it, from row `skip` on.

    Text from the hub is requested from there on; files, chat and pairs are read again from the
    start and passed over.

    Args:
        cache_dir: where `datasets` caches what it loads.
        cursor: the last one of a row before row `skip`.
        on_network_problem: receives one line per network failure.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: nothing of the source can be read; problems with some of it come in the rows.
    """
    pending = _Pending()
    is_text = source.kind == "text"
    if is_text and source.hub is None and len(source.columns) == 1 and not source.clean_url:
        return islice(_read_documents(source, pending), skip, None)
    if source.hub is None:
        records = typed_rows.read_dicts(_local_path(source), pending.problems.append)
        first = 0
    else:
        first = skip if is_text else 0
        records = hub.read_rows(
            HubDataset(
                source.hub,
                source.config,
                source.split,
                source.revision,
                source.data_files,
                cache_dir,
            ),
            skip=first,
            cursor=cursor if is_text else None,
            on_cursor=pending.cursors.append if is_text else None,
            retry=RetryPolicy(on_problem=on_network_problem),
        )
    if is_text:
        return islice(_read_text_rows(source, records, first, pending), skip - first, None)
    return islice(_read_chat_rows(source, records, pending), skip, None)


def _ignore(line: str) -> None:
    """Accept a problem that is reported elsewhere."""


def _read_documents(source: SourceConfig, pending: _Pending) -> Iterator[SourceRow]:
    column = source.columns[0]
    paths = [_local_path(source)]
    for document in documents.read(paths, pending.problems.append, column=column):
        yield pending.take_row(document)
    yield from pending.take_last_row()


def _read_text_rows(
    source: SourceConfig, records: Iterator[Record], first: int, pending: _Pending
) -> Iterator[SourceRow]:
    """Yield one row per record, with or without a document: rows are numbered as records are."""
    source_name = source.hub or _local_path(source).name
    for number, record in enumerate(records, first + 1):
        texts = [record.get(column, _MISSING) for column in source.columns]
        if number == 1 and _MISSING in texts:
            missing = source.columns[texts.index(_MISSING)]
            available = ", ".join(map(str, record))
            raise ValueError(f"{source_name}: no column {missing!r}; there are {available}")
        if not all(isinstance(text, str | None) for text in texts):
            columns = " or ".join(source.columns)
            pending.problems.append(
                f"{source_name}, row {number}: no text in the column {columns}; left out"
            )
            texts = []
        text = "\n\n".join(text for text in texts if text and not text.isspace())
        document = Document(f"{source_name}:{number}", text) if text else None
        url = record.get(source.url_column)
        yield pending.take_row(document, url if isinstance(url, str) else "")
    yield from pending.take_last_row()


def _read_chat_rows(
    source: SourceConfig, records: Iterator[Record], pending: _Pending
) -> Iterator[SourceRow]:
    layout = source.layout
    if layout is None:
        first = next(records, None)
        if first is None:
            raise ValueError(f"{source.hub or source.path}: no rows")
        layout = _detect_layout(source, first)
        records = chain([first], records)
    converter = convert.make_converter(layout, source.languages)
    for item in converter(records, pending.dropped.append):
        yield pending.take_row(item)
    yield from pending.take_last_row()


def _detect_layout(source: SourceConfig, record: Record) -> str:
    layout = convert.detect_layout(record)
    if layout == "oasst" and source.kind == "pairs":
        layout = "oasst_pairs"
    if layout not in LAYOUTS[source.kind]:
        contents = "preferences, no conversations"
        if source.kind == "pairs":
            contents = "conversations, no preferences"
        raise ValueError(f"{source.hub or source.path}: the layout {layout!r} holds {contents}")
    return layout


def _local_path(source: SourceConfig) -> Path:
    return expand_path(str(source.path), os.environ)
