"""Text files, Markdown and JSONL as documents, exact to the byte; conversations and preference pairs from JSONL.

Documents stream through Hugging Face `datasets`, handed a generator of our own: its text loader turns every newline
into a plain one, its JSON loader refuses a column whose type changes between lines and names no line, and both
look up a host on the network. So the bytes are read here.

Invariant: a document's text is its file's, newlines and trailing spaces included; what cannot be read is an error that
names the file and the place, never a document left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

PIECE = 1 << 20
SUFFIXES = (".txt", ".md", ".jsonl")
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


def files_of(path: Path | str) -> list[Path]:
    """The readable files at a path, sorted: itself, or all below it whose name does not begin with a dot.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: a file of another kind, or a folder without any of these.
    """
    path, kinds = Path(path), ", ".join(SUFFIXES)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path} is not one of {kinds}; rename it or convert it")
        return [path]
    if not path.is_dir():
        raise FileNotFoundError(f"no file or folder at {path}")
    found = [
        file
        for file in path.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    if not found:
        raise ValueError(f"the corpus is empty: no {kinds} files below {path}")
    return sorted(found, key=lambda file: file.relative_to(path).as_posix())


def read(paths: Iterable[Path | str], problem: Problem | None = None, *, column: str = "text") -> Iterator[Document]:
    """Stream the documents of files and folders, sorted by name; those of white space alone are passed over.

    A text or Markdown file is one document; a JSONL file has one in the field `text` of each line.

    Raises:
        FileNotFoundError: a path leads nowhere; at once, before anything is read.
        ValueError: no text in any of them, bytes that are no UTF-8, or a line that is no JSON object with a text.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_bytes(b"one\\r\\n")
        >>> list(read([path]))
        [Document(name='a.txt', text='one\\r\\n')]
    """
    found: dict[Path, tuple[str, str]] = {}
    for path in paths:
        for file in files_of(path):
            name = file.name if file == Path(path) else file.relative_to(path).as_posix()
            found[file.resolve()] = (name, str(file))
    named = sorted(found.values())
    if not named:
        raise ValueError("the corpus is empty: no files were named")
    return _stream(named)


def _stream(named: list[tuple[str, str]]) -> Iterator[Document]:
    from datasets import IterableDataset  # imported late: it takes a second

    empty = True
    for row in IterableDataset.from_generator(_rows, gen_kwargs={"named": named}):
        empty = False
        yield Document(row["name"], row["text"])
    if empty:
        raise ValueError(f"the corpus is empty: only white space in {', '.join(file for _, file in named[:3])}")


def _rows(named: list[tuple[str, str]]) -> Iterator[dict[str, str]]:
    for name, file in named:
        if file.lower().endswith(".jsonl"):
            for number, line in _lines(file):
                text = _parse(line, _Text, file, number).text
                _check_unicode(text, file, number)
                if text.strip():
                    yield {"name": f"{name}:{number}", "text": text}
        else:
            text = _decode(Path(file).read_bytes(), file)
            if text.strip():
                yield {"name": name, "text": text}


def rows(path: Path | str, problem: Problem | None = None, *, skip: int = 0) -> Iterator[dict[str, Any]]:
    """Whole records of JSONL, such as chat data."""
    found = (
        msgspec.json.decode(line, type=dict[str, Any]) for file in files_of(path) for _, line in _lines(str(file))
    )
    return islice(found, skip, None)


class _Text(msgspec.Struct):
    text: str


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
    """Every line of JSONL files as `kind`, with its file and line for messages."""
    files = [file for path in paths for file in files_of(path)]
    empty = True
    for file in files:
        if file.suffix.lower() != ".jsonl":
            raise ValueError(f"{file} is not JSONL; conversations and pairs are read from .jsonl files")
        for number, line in _lines(str(file)):
            empty = False
            yield f"{file}, line {number}", _parse(line, kind, str(file), number)
    if empty:
        raise ValueError(f"no data: {', '.join(map(str, files[:3])) or 'no files named'} holds no lines")


def _lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that hold anything, numbered from 1; only a line feed ends a line, as JSONL says."""
    with open(file, "rb") as handle:
        for number, line in enumerate(handle, 1):
            if line.strip():
                yield number, line


def _parse(line: bytes, kind: type[T], file: str, number: int) -> T:
    try:
        return msgspec.json.decode(line, type=kind)
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}, line {number}: byte {error.start} of the line is not UTF-8") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{file}, line {number}: {error}") from None


def _check_unicode(text: str, file: str, number: int) -> None:
    """JSON can spell half a surrogate pair, which is no text that anything can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{file}, line {number}: half a surrogate pair at character {error.start}") from None


def _decode(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; convert the file, say with iconv"
        ) from None
