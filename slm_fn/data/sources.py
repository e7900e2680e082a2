"""Text, Markdown, JSONL and parquet, gzip and zstd too, as documents exact to the byte; conversations and pairs.

The bytes are read here rather than by `datasets`: its text loader turns every newline into a plain one, its JSON loader
refuses a column whose type changes between lines and names no line, and both look up a host on the network.

Invariant: a document's text is its file's, newlines and trailing spaces included; what cannot be read is told with the
file and the place, as an error or to `problem`, and is never left out in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

from slm_fn.data import folders, formats
from slm_fn.data.formats import PIECE, Fail, shown
from slm_fn.data.records import records, texts

SPOKEN = (".chat.jsonl", ".pairs.jsonl")
"""Names with these hold conversations or pairs: reading the texts of a folder passes over them."""
T = TypeVar("T")


class Document(NamedTuple):
    """A text, or a piece of one, and its name: the path below what was asked for, and for JSONL and parquet the line.

    Long texts come in parts of at most `PIECE` characters; `part` > 0 continues the document before it, and the parts
    of one name joined are the text.
    """

    name: str
    text: str
    part: int = 0


Problem = Callable[[str], None]
"""Is told what cannot be read, one line each, where reading goes on without it."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one side says."""

    role: Literal["system", "user", "assistant"]
    content: str


class Conversation(msgspec.Struct, frozen=True):
    """One line of chat data."""

    messages: tuple[Message, ...]


class Preference(msgspec.Struct, frozen=True):
    """One line of preference data: two continuations of one prompt."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


Check = Callable[[Sequence[Message]], Any]
"""Raises ValueError where messages are no conversation; the chat template's own check arrives by this."""


class _Report:
    """Raises what cannot be read, or tells it and counts: a file that broke is not called empty too."""

    def __init__(self, problem: Problem | None) -> None:
        self.problem, self.count = problem, 0

    def fail(self, line: str) -> None:
        self.count += 1
        if self.problem is None:
            raise ValueError(line)
        self.problem(" ".join(line.splitlines()))

    def note(self, line: str) -> None:
        """Nothing is lost, but a reader may want to know."""
        if self.problem is not None:
            self.problem(line)


def files_of(path: Path | str, problem: Problem | None = None) -> list[Path]:
    """The readable files at a path, sorted: itself, or all below it whose name does not begin with a dot.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: a file of another kind; without `problem`, a folder without any of these, or something below it that
            cannot be read.
    """
    return folders.files_of(Path(path), _Report(problem).fail)


def read(paths: Iterable[Path | str], problem: Problem | None = None, *, column: str = "text") -> Iterator[Document]:
    """Stream the documents of files and folders, sorted by name; those of white space alone are passed over.

    A text or Markdown file is one document; JSONL has one in the field `column` of each line, parquet one in that
    column of each row. A text longer than `PIECE` comes in parts. A file that is named twice is read once; files that
    would get the same name are told apart by the path as it was given.

    Args:
        problem: is told each thing that cannot be read (and files that are empty, and shared names), one line each, and
            the rest is read; what was named and does not exist, or is of another kind, is an error all the same.

    Raises:
        FileNotFoundError: a path leads nowhere; at once, before anything is read.
        ValueError: no text in any of them; without `problem`, whatever cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_bytes(b"one\\r\\n")
        >>> list(read([path]))
        [Document(name='a.txt', text='one\\r\\n', part=0)]
    """
    report = _Report(problem)
    found = _named(paths, report)
    if not found:
        raise ValueError("the corpus is empty: no files were named, or none could be read")
    return _stream(found, column, report)


def rows(path: Path | str, problem: Problem | None = None, *, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Whole records of JSONL and parquet, such as chat data, without the first `skip` that can be read.

    Raises:
        FileNotFoundError: the path leads nowhere; at once.
        ValueError: a file of another kind; without `problem`, whatever cannot be read.
    """
    report = _Report(problem)
    files = folders.files_of(Path(path), report.fail)
    for file in files:
        _records_only(file)
    return islice((row for file in files for _, row in records(str(file), dict, report.fail)), skip, None)


def named(paths: Iterable[Path | str], problem: Problem | None = None) -> list[tuple[str, str]]:
    """The names and paths of the files that `read` reads, in its order."""
    return _named(paths, _Report(problem))


def _named(paths: Iterable[Path | str], report: _Report) -> list[tuple[str, str]]:
    """The names and paths of the files, sorted, each file once."""
    found: dict[Path, tuple[str, Path]] = {}
    for path in map(Path, paths):
        for file in folders.files_of(path, report.fail):
            if file != path and any(ending in file.name.lower() for ending in SPOKEN):
                continue
            found[file.resolve()] = (file.name if file == path else file.relative_to(path).as_posix(), file)
    named = [(shown(name), file) for name, file in found.values()]
    for longer in (lambda file: shown(file), lambda file: shown(file.resolve())):
        count = Counter(name for name, _ in named)
        for name in sorted(name for name in count if count[name] > 1):
            report.note(f"{count[name]} files are called {name}; each goes by its whole path instead")
        named = [(longer(file) if count[name] > 1 else name, file) for name, file in named]
    return sorted((name, str(file)) for name, file in named)


def _stream(named: list[tuple[str, str]], column: str, report: _Report) -> Iterator[Document]:
    empty = True
    for name, file in named:
        before = report.count
        text = (formats.kind(file) or ("", ""))[0] == "text"
        documents = _text(name, file, report.fail) if text else _fields(name, file, column, report.fail)
        first = next(documents, None)
        if first is not None:
            empty = False
            yield first
            yield from documents
        elif report.count == before:
            report.note(f"{shown(file)}: no text in it; passed over")
    if empty:
        files = ", ".join(shown(file) for _, file in named[:3])
        raise ValueError(
            f"the corpus is empty: nothing in {files}; things that could not be read: {report.count} (told above); "
            f"where the text is not in the field {column!r}, name its field as the column"
            if report.count
            else f"the corpus is empty: only white space in {files}"
        )


def _text(name: str, file: str, fail: Fail) -> Iterator[Document]:
    parts = formats.pieces(formats.text(file, fail))
    first = next(parts, "")
    if _blank(first) and all(map(_blank, formats.text(file, lambda line: None))):  # looks on where a megabyte is blank
        for _ in parts:
            pass  # but the end may be broken, and is to be told
        return
    for part, piece in enumerate(chain([first], parts)):
        yield Document(name, piece, part)


def _fields(name: str, file: str, column: str, fail: Fail) -> Iterator[Document]:
    for number, text in texts(file, column, fail):
        if _blank(text):
            continue
        if len(text) <= PIECE:
            yield Document(f"{name}:{number}", text)
        else:
            for part, piece in enumerate(formats.pieces([text])):
                yield Document(f"{name}:{number}", piece, part)


def _blank(text: str) -> bool:
    return not text or text.isspace()


def _records_only(file: Path) -> None:
    if (formats.kind(str(file)) or ("", ""))[0] == "text":
        raise ValueError(f"{file} is not JSONL or parquet; conversations, pairs and records are read from these")


def read_chat(paths: Iterable[Path | str], check: Check | None = None) -> Iterator[Conversation]:
    """The conversations of JSONL files: `{"messages": [{"role": ..., "content": ...}, ...]}` on each line.

    Args:
        check: looks at each conversation and raises ValueError, to which file and line are added.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ValueError: a line that is no such object, or no lines at all; names file and line.
    """
    for place, row in _typed(paths, Conversation):
        if not row.messages:
            raise ValueError(f"{place}: a conversation needs at least one message")
        _checked(check, row.messages, place)
        yield row


class _RawPreference(msgspec.Struct):
    prompt: str | tuple[Message, ...]
    chosen: str | tuple[Message, ...]
    rejected: str | tuple[Message, ...]


def read_pairs(paths: Iterable[Path | str], check: Check | None = None) -> Iterator[Preference]:
    """The preference pairs of JSONL files: `prompt`, `chosen` and `rejected`, each a list of messages or a string.

    A string is one message: the user's for the prompt, the assistant's for the others.

    Args:
        check: looks at prompt and chosen, then prompt and rejected, as conversations.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ValueError: a line that is no such object, an answer that is not the assistant's, or no lines at all.
    """
    for place, raw in _typed(paths, _RawPreference):
        row = Preference(
            _messages(raw.prompt, "user"), _messages(raw.chosen, "assistant"), _messages(raw.rejected, "assistant")
        )
        if not row.prompt:
            raise ValueError(f"{place}: the prompt is empty")
        for name, answer in (("chosen", row.chosen), ("rejected", row.rejected)):
            if not answer or answer[-1].role != "assistant":
                raise ValueError(f"{place}: {name} must end with a message of the assistant")
            _checked(check, (*row.prompt, *answer), place)
        yield row


def _messages(value: str | tuple[Message, ...], role: Literal["user", "assistant"]) -> tuple[Message, ...]:
    return (Message(role, value),) if isinstance(value, str) else value


def _checked(check: Check | None, messages: Sequence[Message], place: str) -> None:
    try:
        for message in messages:
            message.content.encode()
        if check is not None:
            check(messages)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _typed(paths: Iterable[Path | str], kind: type[T]) -> Iterator[tuple[str, T]]:
    """Every record of JSONL or parquet files as `kind`, with its file and line for messages."""
    files = [file for path in paths for file in files_of(path)]
    empty = True
    for file in files:
        _records_only(file)
        for number, row in records(str(file), kind, _Report(None).fail):
            empty = False
            yield f"{shown(file)}, line {number}", row
    if empty:
        raise ValueError(f"no data: {', '.join(map(shown, files[:3])) or 'no files named'} holds no lines")
