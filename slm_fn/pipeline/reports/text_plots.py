"""Plots of text and tokens: lengths, token frequencies by rank, compression by document, counts.

Drawn by matplotlib (the extra `plot`) without a display and without its global state.

Invariant: the same numbers give the same picture, and every axis names its quantity and its unit.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slm_fn.core import files

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg")
PANEL_WIDTH_INCHES = 6.4
PANEL_HEIGHT_INCHES = 4.0
DPI = 120
MAX_SCATTER_POINTS = 5000
"""A scatter plot of more documents draws an evenly spaced subset of them."""
MIN_LOG_RATIO = 20
"""Lengths get a logarithmic axis if the longest is more than this many times the shortest.

Below that the labels of a logarithmic axis collide, since it covers a single power of ten.
"""
COLOUR = "#35618f"
ACCENT_LINE: dict[str, Any] = {
    "color": "#c8553d",
    "linewidth": 1,
    "linestyle": "--",
}
LARGE_DOTS: dict[str, Any] = {
    "s": 30,
    "alpha": 0.8,
    "linewidths": 0,
}
SMALL_DOTS: dict[str, Any] = {
    "s": 6,
    "alpha": 0.4,
    "linewidths": 0,
}


class Panel(NamedTuple):
    """One plot of a figure: its title, its axis labels, and the function that draws it."""

    title: str
    x_label: str
    y_label: str
    draw: Callable[[Axes], Any]


def length_panel(
    lengths: Sequence[int] | np.ndarray,
    items: str,
    unit: str,
) -> Panel:
    """A histogram of lengths with their median; logarithmic if the lengths differ widely.

    Args:
        lengths: one length for each item.
        items: what has these lengths, in the plural: "documents".
        unit: unit of the lengths: "tokens".
    """
    values = np.asarray(lengths)
    low = max(1, int(values.min()))
    high = int(values.max()) + 1
    is_log = high > MIN_LOG_RATIO * low

    def draw(ax: Axes) -> None:
        num_edges = _num_bins(len(values)) + 1
        whole_numbers = np.rint(np.geomspace(low, max(high, low + 1), num_edges))
        # Edges lie between integers: a bin that contains no integer would look like a gap.
        edges = np.unique(whole_numbers) - 0.5
        ax.hist(np.maximum(values, 1), bins=edges.tolist(), color=COLOUR)
        if is_log:
            ax.set_xscale("log")
        _mark_median(ax, float(np.median(values)), unit)

    scale = ", log scale" if is_log else ""
    return Panel(
        title=f"Length of {len(values):,} {items}",
        x_label=f"length ({unit}{scale})",
        y_label=items,
        draw=draw,
    )


def share_panel(
    shares: Sequence[float] | np.ndarray,
    items: str,
    quantity: str,
) -> Panel:
    """A histogram of shares from 0 to 100 % with their median.

    Args:
        shares: one share, 0 to 1, for each item.
        items: what has these shares, in the plural.
        quantity: what they are shares of: "tokens that are trained".
    """
    percents = np.asarray(shares) * 100

    def draw(ax: Axes) -> None:
        edges = np.linspace(0, 100, _num_bins(len(percents)) + 1)
        ax.hist(percents, bins=edges.tolist(), color=COLOUR)
        _mark_median(ax, float(np.median(percents)), "%")

    return Panel(
        title=f"Share of {quantity}",
        x_label=f"{quantity} (%)",
        y_label=items,
        draw=draw,
    )


def size_panel(
    counts: Mapping[int, int],
    items: str,
    unit: str,
) -> Panel:
    """A bar for each small size: how many items have it, on a logarithmic axis.

    Args:
        counts: number of items by size.
        items: what has these sizes, in the plural.
        unit: unit of the sizes.
    """

    def draw(ax: Axes) -> None:
        ax.bar(list(counts), list(counts.values()), width=0.9, color=COLOUR)
        ax.set_yscale("log")
        ax.set_xlim(min(counts) - 1, max(counts) + 1)

    return Panel(
        title=f"Length of {sum(counts.values()):,} {items}",
        x_label=f"length ({unit})",
        y_label=f"{items} (log scale)",
        draw=draw,
    )


def rank_panel(counts: np.ndarray) -> Panel:
    """Occurrences of each token, most frequent first, on logarithmic axes, beside Zipf's law.

    Args:
        counts: occurrences by token id. In natural text they fall as 1 / rank.

    References: G. K. Zipf, 1949.
    """
    occurrences = np.sort(counts[counts > 0])[::-1]
    ranks = np.arange(1, len(occurrences) + 1)
    num_unused = int((counts == 0).sum())

    def draw(ax: Axes) -> None:
        ax.loglog(ranks, occurrences, color=COLOUR, linewidth=2, label="counted")
        zipf = np.maximum(occurrences[0] / ranks, 0.5)
        ax.loglog(ranks, zipf, label="1 / rank", **ACCENT_LINE)
        ax.legend(frameon=False)

    return Panel(
        title=f"{len(occurrences):,} tokens used, {num_unused:,} never",
        x_label="rank (log scale)",
        y_label="occurrences (log scale)",
        draw=draw,
    )


def compression_panel(num_bytes: np.ndarray, num_tokens: np.ndarray) -> Panel:
    """Bytes per token of each document against its size; documents without tokens are left out.

    Args:
        num_bytes: bytes of each document.
        num_tokens: tokens of each document.
    """
    indices = np.flatnonzero(num_tokens)
    stride = -(-len(indices) // MAX_SCATTER_POINTS) or 1
    indices = indices[::stride]
    sizes = num_bytes[indices]
    ratios = num_bytes[indices] / num_tokens[indices]
    overall = num_bytes.sum() / max(1, num_tokens.sum())
    dots = LARGE_DOTS if len(indices) < 100 else SMALL_DOTS

    def draw(ax: Axes) -> None:
        ax.scatter(sizes, ratios, color=COLOUR, **dots)
        ax.set_xscale("log")
        ax.set_ylim(bottom=0)
        ax.axhline(overall, label=f"all together: {overall:.2f}", **ACCENT_LINE)
        ax.legend(frameon=False)

    return Panel(
        title="Compression by document",
        x_label="size of the document (bytes, log scale)",
        y_label="bytes per token",
        draw=draw,
    )


def count_panel(
    counts: Mapping[str, int],
    title: str,
    unit: str,
) -> Panel:
    """A horizontal bar for each name, the largest on top."""
    ascending = sorted(counts.items(), key=lambda item: item[1])
    names = [name for name, _ in ascending]
    numbers = [number for _, number in ascending]

    def draw(ax: Axes) -> None:
        ax.barh(names, numbers, color=COLOUR)
        ax.margins(x=0.15)
        for position, number in enumerate(numbers):
            ax.annotate(f" {number:,}", (number, position), va="center", fontsize=8)

    return Panel(
        title=title,
        x_label=unit,
        y_label="",
        draw=draw,
    )


def _num_bins(num_values: int) -> int:
    """Returns as many bins as the values can fill: 8 to 40."""
    return int(np.clip(2 * num_values**0.5, 8, 40))


def _mark_median(
    ax: Axes,
    median: float,
    unit: str,
) -> None:
    ax.axvline(median, label=f"median {median:,.0f} {unit}", **ACCENT_LINE)
    ax.legend(frameon=False)


def check_path(path: Path | str) -> Path:
    """Returns the path if a picture can be drawn there. Call it before any long computation.

    Raises:
        ValueError: the suffix is neither .png nor .svg, or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a picture's name ends in {' or '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise ValueError(
            'pictures are drawn by matplotlib, which is not installed: pip install "slm_fn[plot]"'
        )
    return path


def save(
    panels: Sequence[Panel],
    path: Path | str,
    num_columns: int | None = None,
) -> Path:
    """Draws panels in a grid and write the picture atomically.

    Args:
        panels: the plots, in reading order.
        path: a .png or .svg file.
        num_columns: panels in a row of the grid. Default: all in one row.

    Returns:
        The path.

    Raises:
        ValueError: there are no panels, the suffix is another one, or matplotlib is not installed.
    """
    path = check_path(path)
    if not panels:
        raise ValueError(f"{path}: there is nothing to draw")
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"svg.hashsalt": "slm_fn", "axes.spines.top": False, "axes.spines.right": False}
    ):
        width = min(len(panels), num_columns or len(panels))
        height = -(-len(panels) // width)
        figure = Figure(
            figsize=(PANEL_WIDTH_INCHES * width, PANEL_HEIGHT_INCHES * height),
            layout="constrained",
        )
        for i, panel in enumerate(panels):
            _draw_panel(panel, figure.add_subplot(height, width, i + 1))
        out = io.BytesIO()
        file_format = path.suffix.lower().removeprefix(".")
        # A date or a version in the file would make equal pictures differ.
        metadata = {"Date": None} if file_format == "svg" else {"Software": None}
        figure.savefig(
            out,
            format=file_format,
            dpi=DPI,
            metadata=metadata,
        )
    return files.write(path, out.getvalue())


def _draw_panel(panel: Panel, ax: Axes) -> None:
    panel.draw(ax)
    ax.set_title(panel.title, fontsize=11)
    ax.set_xlabel(panel.x_label)
    ax.set_ylabel(panel.y_label)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)
