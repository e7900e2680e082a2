"""A corpus of English for benchmarks: the documentation of the software installed on this machine.

Usage: `python tests/bench/documentation.py OUT.jsonl MEGABYTES` (some two minutes).

The documents are the docstrings of each Python module, and each Markdown, reStructuredText, text
and METADATA file, without duplicates, in the order of a hash of their text. As many are written as
reach the size, each as one line of JSONL. The same machine gives the same file.
"""

import ast
import hashlib
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

INSTALL_PATHS = sysconfig.get_paths()
ROOTS = [
    Path(INSTALL_PATHS["purelib"]),
    Path(INSTALL_PATHS["stdlib"]),
    Path("/usr/share/doc"),
]
TEXT_SUFFIXES = {".md", ".rst", ".txt"}
MIN_CHARS = 200
"""A document is longer than this."""
DOCUMENTED_NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def read_docstrings(file: Path) -> str:
    """Returns all docstrings of a Python module, with an empty line between two."""
    # Decoded here, because a coding line may name a codec that executes code.
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = []
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED_NODES):
            docstring = ast.get_docstring(node)
            if docstring:
                docstrings.append(docstring)
    return "\n\n".join(docstrings)


def read_document(file: Path) -> str:
    """Returns the documentation in a file; empty if the file holds none."""
    if file.suffix == ".py":
        return read_docstrings(file)
    if file.suffix in TEXT_SUFFIXES or file.name == "METADATA":
        return file.read_bytes().decode()
    return ""


def read_documents() -> Iterator[str]:
    """Yields the documentation of every file that can be read."""
    for root in ROOTS:
        for file in root.rglob("*"):
            if file.is_symlink() or not file.is_file():
                continue
            try:
                yield read_document(file)
            except (OSError, SyntaxError, ValueError):
                continue  # a benchmark does not need every file


def collect_documents(num_bytes: int) -> list[str]:
    """Returns documents with so many bytes in total, or all that there are."""
    text_by_hash: dict[bytes, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for text in read_documents():
            if len(text) > MIN_CHARS:
                text_by_hash[hashlib.sha256(text.encode()).digest()] = text
    documents: list[str] = []
    total_bytes = 0
    for digest in sorted(text_by_hash):
        if total_bytes >= num_bytes:
            break
        text = text_by_hash[digest]
        documents.append(text)
        total_bytes += len(text.encode())
    return documents


def main(out: Path, megabytes: float) -> None:
    """Writes the corpus and reports its size on standard error."""
    documents = collect_documents(int(megabytes * 1e6))
    lines = [json.dumps({"text": text}) + "\n" for text in documents]
    out.write_text("".join(lines), encoding="utf-8")
    num_bytes = sum(len(text.encode()) for text in documents)
    print(f"{len(documents)} documents, {num_bytes} bytes", file=sys.stderr)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
