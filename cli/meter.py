"""A meter for work on a corpus: share done, MB/s, time left; a bar on a terminal, a line every few seconds elsewhere.

Invariant: everything goes to standard error, and work that is done at once prints nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

SECONDS = 5.0
"""Between two plain lines."""
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))

Update = Callable[..., None]
"""`update(done, text="")`: bytes done so far, and a few words that stand behind the figures."""


def size(amount: float) -> str:
    """Bytes in a unit that can be read.

    Example:
        >>> size(1_234_567), size(12)
        ('1.23 MB', '12 B')
    """
    for unit, name in UNITS:
        if amount >= unit:
            return f"{amount / unit:.3g} {name}"
    return f"{amount:.0f} B"


def line(title: str, done: float, total: float, seconds: float, text: str = "") -> str:
    """One line of figures.

    Example:
        >>> line("reading", 5e6, 2e7, 2.0, "3 documents")
        'reading 25 %  5 MB of 20 MB  2.5 MB/s  0:00:06 left  3 documents'
    """
    rate = done / max(seconds, 1e-9)
    parts = [f"{title} {100 * min(1.0, done / max(total, 1)):.0f} %", f"{size(done)} of {size(total)}"]
    parts.append(f"{size(rate)}/s")
    if rate and done < total:
        minutes, left = divmod(int((total - done) / rate), 60)
        parts.append(f"{minutes // 60}:{minutes % 60:02d}:{left:02d} left")
    return "  ".join([*parts, text] if text else parts)


@contextmanager
def meter(title: str, total: float, live: bool | None = None) -> Iterator[Update]:
    """Show how far work on `total` bytes is; yields the function to tell it with.

    Args:
        live: a bar that is redrawn in place; by default where standard error is a terminal.
    """
    begun = shown = time.monotonic()
    live = sys.stderr.isatty() if live is None else live

    def update(done: float, text: str = "") -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown >= (0.2 if live else SECONDS):
            shown = now
            said = line(title, done, total, now - begun, text)
            click.echo(f"\r\033[K{said}" if live else said, nl=not live, err=True)

    try:
        yield update
    finally:
        if live and shown > begun:
            click.echo("\r\033[K", nl=False, err=True)
