"""Pictures of text and tokens: lengths, token frequencies by rank, compression by document, counts by name.

Drawn by matplotlib (the extra `plot`) without a display and without its global state.

Invariant: the same numbers give the same picture, and every axis says what it counts and in which unit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slm_fn.core import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
WIDTH, HEIGHT, DPI = 6.4, 4.0, 120
MOST_POINTS = 5000
"""Documents drawn as points of their own; more are thinned, evenly."""
WIDE = 20
"""From this ratio on lengths are drawn on a logarithmic axis, whose labels collide where it holds but one power."""
INK, ACCENT = "#35618f", "#c8553d"


class Panel(NamedTuple):
    """One diagram: what stands above it and beside its axes, and how it is drawn."""

    title: str
    x: str
    y: str
    draw: Callable[[Axes], Any]


def lengths(values: Sequence[int] | np.ndarray, of: str, unit: str) -> Panel:
    """How many things have which length, the median marked; lengths that differ widely on a logarithmic axis."""
    found = np.asarray(values)
    low, high = max(1, int(found.min())), int(found.max()) + 1
    is_wide = high > WIDE * low

    def draw(ax: Axes) -> None:
        # Edges lie between whole numbers: else a bin without one would look like a gap in the data.
        edges = np.unique(np.rint(np.geomspace(low, max(high, low + 1), _bins(len(found)) + 1))) - 0.5
        ax.hist(np.maximum(found, 1), bins=edges.tolist(), color=INK)
        if is_wide:
            ax.set_xscale("log")
        _mark(ax, float(np.median(found)), unit)

    scale = ", log scale" if is_wide else ""
    return Panel(f"Length of {len(found):,} {of}", f"length ({unit}{scale})", of, draw)


def shares(values: Sequence[float] | np.ndarray, of: str, share: str) -> Panel:
    """How many things have which share, from 0 to 100 %."""
    found = np.asarray(values) * 100

    def draw(ax: Axes) -> None:
        ax.hist(found, bins=np.linspace(0, 100, _bins(len(found)) + 1).tolist(), color=INK)
        _mark(ax, float(np.median(found)), "%")

    return Panel(f"Share of {share}", f"{share} (%)", of, draw)


def sizes(counts: Mapping[int, int], of: str, unit: str) -> Panel:
    """How many things have which small size; one bar for each, counts on a logarithmic axis."""

    def draw(ax: Axes) -> None:
        ax.bar(list(counts), list(counts.values()), width=0.9, color=INK)
        ax.set_yscale("log")
        ax.set_xlim(min(counts) - 1, max(counts) + 1)

    return Panel(f"Length of {sum(counts.values()):,} {of}", f"length ({unit})", f"{of} (log scale)", draw)


def ranks(counts: np.ndarray) -> Panel:
    """How often each token occurs, the most frequent first; both axes logarithmic. Natural text falls as 1 / rank.

    References: G. K. Zipf, 1949.
    """
    found = np.sort(counts[counts > 0])[::-1]
    place = np.arange(1, len(found) + 1)

    def draw(ax: Axes) -> None:
        ax.loglog(place, found, color=INK, linewidth=2, label="counted")
        ax.loglog(place, np.maximum(found[0] / place, 0.5), color=ACCENT, linewidth=1, linestyle="--", label="1 / rank")
        ax.legend(frameon=False)

    unused = int((counts == 0).sum())
    return Panel(f"{len(found):,} tokens used, {unused:,} never", "rank (log scale)", "occurrences (log scale)", draw)


def compression(num_bytes: np.ndarray, num_tokens: np.ndarray) -> Panel:
    """Bytes per token of each document, by its size."""
    kept = np.flatnonzero(num_tokens)
    kept = kept[:: -(-len(kept) // MOST_POINTS) or 1]
    size, ratio = num_bytes[kept], num_bytes[kept] / num_tokens[kept]
    overall = num_bytes.sum() / max(1, num_tokens.sum())

    def draw(ax: Axes) -> None:
        few = len(kept) < 100
        ax.scatter(size, ratio, s=30 if few else 6, alpha=0.8 if few else 0.4, color=INK, linewidths=0)
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.axhline(overall, color=ACCENT, linewidth=1, linestyle="--", label=f"all together: {overall:.2f}")
        ax.legend(frameon=False)

    return Panel("Compression by document", "size of the document (bytes, log scale)", "bytes per token", draw)


def counts(found: Mapping[str, int], title: str, unit: str) -> Panel:
    """A bar for each name, the largest on top."""
    rows = sorted(found.items(), key=lambda row: row[1])

    def draw(ax: Axes) -> None:
        ax.barh([name for name, _ in rows], [number for _, number in rows], color=INK)
        ax.margins(x=0.15)
        for place, (_, number) in enumerate(rows):
            ax.annotate(f" {number:,}", (number, place), va="center", fontsize=8)

    return Panel(title, unit, "", draw)


def _bins(count: int) -> int:
    """As many bins as the values can fill: 8 to 40."""
    return int(np.clip(2 * count**0.5, 8, 40))


def _mark(ax: Axes, median: float, unit: str) -> None:
    ax.axvline(median, color=ACCENT, linewidth=1, linestyle="--", label=f"median {median:,.0f} {unit}")
    ax.legend(frameon=False)


def check(path: Path | str) -> Path:
    """Return the path if a picture can be drawn there: asked before the work, not after it.

    Raises:
        ValueError: the name ends otherwise than in .png or .svg, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise ValueError(
            'pictures are drawn by matplotlib, which is not installed: pip install "slm_fn[plot]"'
        ) from None
    return path


def save(panels: Sequence[Panel], path: Path | str, columns: int | None = None) -> Path:
    """Draw panels side by side, in rows of `columns`, and write the picture, atomically.

    Raises:
        ValueError: nothing to draw, a name of another kind, or matplotlib is not installed.
    """
    path = check(path)
    if not panels:
        raise ValueError(f"{path}: there is nothing to draw")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "slm_fn", "axes.spines.top": False, "axes.spines.right": False}):
        wide = min(len(panels), columns or len(panels))
        high = -(-len(panels) // wide)
        figure = Figure(figsize=(WIDTH * wide, HEIGHT * high), layout="constrained")
        for i, panel in enumerate(panels):
            ax = figure.add_subplot(high, wide, i + 1)
            panel.draw(ax)
            ax.set_title(panel.title, fontsize=11)
            ax.set_xlabel(panel.x)
            ax.set_ylabel(panel.y)
            ax.grid(alpha=0.25)
            ax.set_axisbelow(True)
        out = io.BytesIO()
        kind = path.suffix.lower().removeprefix(".")
        figure.savefig(out, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return files.write(path, out.getvalue())
