"""A corpus of English for benchmarks: the documentation of whatever is installed here.

Usage: `python tests/bench/documentation.py OUT.jsonl MEGABYTES` (some two minutes). Docstrings of every Python module,
and Markdown, reStructuredText, text and METADATA files, one document each, in the order of a hash of their text,
without repetitions; then whole documents until the size is reached. One line of JSONL per document. The same machine
gives the same file.
"""

import ast
import hashlib
import json
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOTS = [*(Path(sysconfig.get_paths()[name]) for name in ("purelib", "stdlib")), Path("/usr/share/doc")]
TEXTS = {".md", ".rst", ".txt"}


def docstrings(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))  # as text: a coding line may name a codec that runs code
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return "\n\n".join(filter(None, (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))))


def texts() -> Iterator[str]:
    for root in ROOTS:
        for file in root.rglob("*"):
            if file.is_symlink() or not file.is_file():
                continue
            try:
                if file.suffix == ".py":
                    yield docstrings(file)
                elif file.suffix in TEXTS or file.name == "METADATA":
                    yield file.read_bytes().decode()
            except (OSError, SyntaxError, ValueError):
                continue  # a benchmark wants text, not every file


def gather(size: int) -> list[str]:
    """Documents of `size` bytes together, or all there are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {hashlib.sha256(text.encode()).digest(): text for text in texts() if len(text) > 200}
    taken, total = [], 0
    for _, text in sorted(found.items()):
        if total >= size:
            break
        taken.append(text)
        total += len(text.encode())
    return taken


if __name__ == "__main__":
    documents = gather(int(float(sys.argv[2]) * 1e6))
    Path(sys.argv[1]).write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    print(len(documents), "documents,", sum(len(text.encode()) for text in documents), "bytes", file=sys.stderr)
