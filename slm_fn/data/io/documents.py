"""Text, Markdown, JSONL and parquet files, gzip and zstd too, as documents exact to the byte.

The bytes are read here rather than by `datasets`: its text loader normalizes every newline, its
JSON loader refuses a column whose type changes between lines and names no line, and both look up a
host on the network.

Invariant: a document's text is its file's, newlines and trailing spaces included; what cannot be
read is reported with file and position, as an error or to `on_problem`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from slm_fn.data.io import folders, formats, text_files, typed_rows
from slm_fn.data.io.formats import printable_path
from slm_fn.data.io.problems import OnProblem, ProblemReporter
from slm_fn.data.io.text_files import CHUNK_CHARS

CHAT_ENDINGS = (".chat.jsonl", ".pairs.jsonl")
"""Files whose names contain these hold conversations or pairs: a folder's texts do not include
them."""
NamedFile = tuple[str, Path]


class Document(NamedTuple):
    """A text, or a chunk of one.

    Long texts come in chunks of at most `CHUNK_CHARS` characters: a `chunk_index` above 0 continues
    the document before it, and the chunks of one name joined are the text.

    Attributes:
        name: the path below the input it was found in; for JSONL and parquet with the line number.
        text: the characters.
        chunk_index: the position of the chunk in its text, from 0.
    """

    name: str
    text: str
    chunk_index: int = 0


def read(
    paths: Iterable[Path | str], on_problem: OnProblem | None = None, *, column: str = "text"
) -> Iterator[Document]:
    """Iterate over the documents of files and folders, sorted by name, without blank ones.

    A text or Markdown file is one document; JSONL has one in the field `column` of each line,
    parquet one in that column of each row. A text longer than `CHUNK_CHARS` comes in chunks. A file
    named twice is read once; files that would get the same name are named by their full paths.

    Args:
        on_problem: receives one line for each thing that cannot be read (and for empty files and
            shared names), and the rest is read. An input that does not exist or is of another kind
            is an error all the same.
        column: the field of JSONL or the column of parquet that holds the text.

    Raises:
        FileNotFoundError: a path does not exist; raised by the call itself.
        ValueError: no text in any of the files; without `on_problem`, whatever cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> _ = path.write_bytes(b"one\\r\\n")
        >>> list(read([path]))
        [Document(name='a.txt', text='one\\r\\n', chunk_index=0)]
    """
    reporter = ProblemReporter(on_problem)
    named_files = _name_files(paths, reporter)
    if not named_files:
        raise ValueError("the corpus is empty: no files were named, or none could be read")
    return _read_files(named_files, column, reporter)


def list_named_files(
    paths: Iterable[Path | str], on_problem: OnProblem | None = None
) -> list[tuple[str, str]]:
    """List the (name, path) of each file that `read` reads, in its order."""
    return _name_files(paths, ProblemReporter(on_problem))


def _name_files(paths: Iterable[Path | str], reporter: ProblemReporter) -> list[tuple[str, str]]:
    """List the (name, path) of the files at some paths, sorted, each file once."""
    by_identity: dict[Path, NamedFile] = {}
    for path in map(Path, paths):
        for file in folders.list_files(path, reporter.report):
            is_input = file == path
            if not is_input and _is_chat_file(file):
                continue
            name = file.name if is_input else file.relative_to(path).as_posix()
            by_identity[file.resolve()] = (name, file)

    def resolved_path(file: Path) -> str:
        return printable_path(file.resolve())

    named = [(printable_path(name), file) for name, file in by_identity.values()]
    named = _rename_duplicates(named, printable_path, reporter)
    named = _rename_duplicates(named, resolved_path, reporter)
    return sorted((name, str(file)) for name, file in named)


def _is_chat_file(file: Path) -> bool:
    name = file.name.lower()
    return any(ending in name for ending in CHAT_ENDINGS)


def _rename_duplicates(
    named: list[NamedFile], to_name: Callable[[Path], str], reporter: ProblemReporter
) -> list[NamedFile]:
    """Give files that share a name the name that `to_name` returns for their paths."""
    num_files = Counter(name for name, _ in named)
    for name in sorted(name for name in num_files if num_files[name] > 1):
        reporter.note(
            f"{num_files[name]} files have the name {name}; each is named by its full path instead"
        )
    renamed = []
    for name, file in named:
        renamed.append((to_name(file) if num_files[name] > 1 else name, file))
    return renamed


def _read_files(
    named_files: list[tuple[str, str]], column: str, reporter: ProblemReporter
) -> Iterator[Document]:
    is_empty = True
    for name, file in named_files:
        num_problems = reporter.num_problems
        documents = _read_file(name, file, column, reporter.report)
        first = next(documents, None)
        if first is not None:
            is_empty = False
            yield first
            yield from documents
        elif reporter.num_problems == num_problems:
            reporter.note(f"{printable_path(file)}: contains no text; skipped")
    if is_empty:
        raise ValueError(_explain_empty(named_files, column, reporter))


def _read_file(name: str, file: str, column: str, on_problem: OnProblem) -> Iterator[Document]:
    if formats.kind_of(file) == "text":
        return _read_text_file(name, file, on_problem)
    return _read_rows(name, file, column, on_problem)


def _read_text_file(name: str, file: str, on_problem: OnProblem) -> Iterator[Document]:
    chunks = text_files.split_chunks(text_files.read_text(file, on_problem))
    first = next(chunks, "")
    if _is_blank(first) and _is_blank_file(file):
        for _ in chunks:
            pass  # read on all the same: a broken end of the file is to be reported
        return
    for chunk_index, chunk in enumerate(chain([first], chunks)):
        yield Document(name, chunk, chunk_index)


def _is_blank_file(file: str) -> bool:
    """Whether a file is white space to its end, in a second pass over it without reports."""

    def ignore(line: str) -> None:
        pass

    return all(map(_is_blank, text_files.read_text(file, ignore)))


def _read_rows(name: str, file: str, column: str, on_problem: OnProblem) -> Iterator[Document]:
    for number, text in typed_rows.read_texts(file, column, on_problem):
        if _is_blank(text):
            continue
        if len(text) <= CHUNK_CHARS:
            yield Document(f"{name}:{number}", text)
            continue
        for chunk_index, chunk in enumerate(text_files.split_chunks([text])):
            yield Document(f"{name}:{number}", chunk, chunk_index)


def _explain_empty(
    named_files: list[tuple[str, str]], column: str, reporter: ProblemReporter
) -> str:
    files = ", ".join(printable_path(file) for _, file in named_files[:3])
    if not reporter.num_problems:
        return f"the corpus is empty: only white space in {files}"
    return (
        f"the corpus is empty: nothing in {files}; problems reported above: "
        f"{reporter.num_problems}; if the text is not in the field {column!r}, "
        "name its field as the column"
    )


def _is_blank(text: str) -> bool:
    return not text or text.isspace()
