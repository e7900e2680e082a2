"""Curves of runs as a file: SVG and PNG by matplotlib, HTML as a page of its own.

Invariant: all three draw the same charts, and the file is written whole or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_fn.core import files
from slm_fn.pipeline import curves, plot, runs
from slm_fn.pipeline.curves import Chart, X
from slm_fn.pipeline.page import log_ticks, page
from slm_fn.pipeline.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#2a6fb0", "#c8553d", "#2f8560", "#8458a8", "#a67c00", "#1c8593", "#b0487f", "#6b6f76")
MOST_POINTS = 4000
STYLES: dict[str, dict[str, Any]] = {
    "raw": {"linewidth": 0.8, "alpha": 0.35},
    "smooth": {"linewidth": 1.8},
    "points": {"linestyle": "none", "marker": "o", "markersize": 5, "markeredgecolor": "white", "zorder": 4},
}


def draw(
    folders: Sequence[Path | str],
    out: Path | str,
    xs: Sequence[X] = (),
    keys: Sequence[str] = (),
    log_y: bool = False,
    smooth: float | None = None,
) -> Path:
    """Draw the runs that the folders are, or hold, into a file whose ending says how.

    Raises:
        ValueError: no runs there, nothing in them to draw, another ending, or matplotlib is not installed.
    """
    out = Path(out)
    is_page = out.suffix.lower() in (".html", ".htm")
    if not is_page:
        if out.suffix.lower() not in plot.SUFFIXES:
            raise ValueError(f"{out}: curves are drawn to .html, {' or '.join(plot.SUFFIXES)}")
        plot.check(out)
    found = find(folders)
    names, charts = curves.charts(found, xs, keys, log_y, smooth)
    if is_page:
        return files.write(out, page(names, charts, runs.table(found)))
    return plot.save([panel(chart, names, i == 0) for i, chart in enumerate(charts)], out, 2 if len(charts) != 3 else 3)


def find(folders: Sequence[Path | str]) -> list[Run]:
    """Every run that one of the folders is or holds, once.

    Raises:
        ValueError: there is none.
    """
    found = {run.path.resolve(): run for folder in folders for run in runs.find(folder)}
    if not found:
        raise ValueError(f"{', '.join(map(str, folders))}: no run folders here (slm pretrain, sft and dpo make them)")
    return list(found.values())


def panel(chart: Chart, names: Sequence[str], legend: bool) -> plot.Panel:
    """A chart as a panel of `plot.save`; one legend serves all of them."""

    def draw(ax: Axes) -> None:
        for curve in chart.curves:
            x, y = curves.thin(curve, MOST_POINTS)[3:]
            dashed: dict[str, Any] = {"linestyle": "--"} if curve.kind == "smooth" and curve.run >= len(PALETTE) else {}
            ax.plot(x, y, color=PALETTE[curve.run % len(PALETTE)], **STYLES[curve.kind], **dashed)
        _axes(ax, chart)
        if legend:
            for i, name in enumerate(names):
                ax.plot(
                    [], [], color=PALETTE[i % len(PALETTE)], label=name, linestyle="--" if i >= len(PALETTE) else "-"
                )
            if any(curve.kind == "points" for curve in chart.curves):
                ax.plot([], [], "o", color="#6b6f76", markersize=5, label="validation")
            ax.legend(frameon=False, fontsize=9)

    return plot.Panel(chart.title, chart.x, chart.y, draw)


def _axes(ax: Axes, chart: Chart) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=chart.x != "seconds"))
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if chart.log_y:
        ax.set_yscale("log")
        marks = log_ticks(*(math.log10(bound) for bound in curves.bounds(chart)))
        ax.set_yticks([10**at for at, _ in marks], [label for _, label in marks])
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(*curves.bounds(chart))
