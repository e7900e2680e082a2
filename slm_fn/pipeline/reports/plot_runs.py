"""Plot runs to a file: SVG and PNG by matplotlib, or an HTML page.

Invariant: all three formats draw the same charts, and the file is written atomically.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slm_fn.core import files
from slm_fn.pipeline.reports import charts, html, runs, text_plots
from slm_fn.pipeline.reports.charts import Chart, XAxis
from slm_fn.pipeline.reports.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTE = ("#2a6fb0", "#c8553d", "#2f8560", "#8458a8", "#a67c00", "#1c8593", "#b0487f", "#6b6f76")
"""Colours of the runs. Runs beyond these take the same colours again, with dashed lines."""
MAX_CURVE_POINTS = 4000
HTML_SUFFIXES = (".html", ".htm")
LINE_STYLES: dict[str, dict[str, Any]] = {
    "raw": {"linewidth": 0.8, "alpha": 0.35},
    "smooth": {"linewidth": 1.8},
    "points": {
        "linestyle": "none",
        "marker": "o",
        "markersize": 5,
        "markeredgecolor": "white",
        "zorder": 4,
    },
}


def draw(
    folders: Sequence[Path | str],
    out: Path | str,
    xs: Sequence[XAxis] = (),
    keys: Sequence[str] = (),
    log_y: bool = False,
    smooth_width: float | None = None,
) -> Path:
    """Draws the charts of runs into a file.

    Args:
        folders: run folders, or folders that contain some.
        out: the file; its suffix selects the format: .html, .htm, .svg or .png.
        xs: x axes, each with a chart of the loss (see `charts.make_charts`).
        keys: more columns of metrics.jsonl to draw.
        log_y: draw losses on a logarithmic axis.
        smooth_width: log lines over which the smooth curves average.

    Returns:
        The path of the file.

    Raises:
        ValueError: there are no runs, they have nothing to draw, the suffix is another one, or
            matplotlib is not installed.
    """
    out = Path(out)
    is_html = out.suffix.lower() in HTML_SUFFIXES
    if not is_html:
        _check_picture_path(out)
    selected_runs = find_runs(folders)
    names, run_charts = charts.make_charts(selected_runs, xs, keys, log_y, smooth_width)
    if is_html:
        page = html.render_page(names, run_charts, runs.summarize(selected_runs))
        return files.write(out, page)
    # One legend serves all panels: it stands in the first.
    panels = [make_panel(chart, names, i == 0) for i, chart in enumerate(run_charts)]
    num_columns = 3 if len(run_charts) == 3 else 2
    return text_plots.save(panels, out, num_columns)


def _check_picture_path(out: Path) -> None:
    if out.suffix.lower() not in text_plots.SUFFIXES:
        suffixes = " or ".join(text_plots.SUFFIXES)
        raise ValueError(f"{out}: curves are drawn to .html, {suffixes}")
    text_plots.check_path(out)


def find_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Returns the runs in some folders, each run once.

    Raises:
        ValueError: there are none.
    """
    by_path: dict[Path, Run] = {}
    for folder in folders:
        by_path |= {run.path.resolve(): run for run in runs.find(folder)}
    if not by_path:
        searched = ", ".join(map(str, folders))
        raise ValueError(f"{searched}: no run folders here (slm pretrain, sft and dpo make them)")
    return list(by_path.values())


def make_panel(
    chart: Chart,
    names: Sequence[str],
    has_legend: bool,
) -> text_plots.Panel:
    """Returns a chart as a panel for `text_plots.save`.

    Args:
        chart: the chart.
        names: the names of the runs, for the legend.
        has_legend: draw the legend into this panel.
    """

    def draw_chart(ax: Axes) -> None:
        _draw_curves(ax, chart)
        _set_axes(ax, chart)
        if has_legend:
            _draw_legend(ax, chart, names)

    return text_plots.Panel(chart.title, chart.x_label, chart.y_label, draw_chart)


def _draw_curves(ax: Axes, chart: Chart) -> None:
    for curve in chart.curves:
        points = charts.downsample(curve, MAX_CURVE_POINTS)
        style = dict(LINE_STYLES[curve.kind])
        if curve.kind == "smooth" and curve.run >= len(PALETTE):
            style["linestyle"] = "--"
        ax.plot(points.x, points.y, color=PALETTE[curve.run % len(PALETTE)], **style)


def _draw_legend(
    ax: Axes,
    chart: Chart,
    names: Sequence[str],
) -> None:
    for i, name in enumerate(names):
        line_style = "--" if i >= len(PALETTE) else "-"
        ax.plot([], [], color=PALETTE[i % len(PALETTE)], label=name, linestyle=line_style)
    if any(curve.kind == "points" for curve in chart.curves):
        ax.plot([], [], "o", color="#6b6f76", markersize=5, label="validation")
    ax.legend(frameon=False, fontsize=9)


def _set_axes(ax: Axes, chart: Chart) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator, NullLocator

    ax.set_xlim(left=0)
    is_integer = chart.x_label != "seconds"
    locator = MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=is_integer)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = charts.y_bounds(chart)
    if chart.log_y:
        ax.set_yscale("log")
        ticks = html.log_ticks(math.log10(low), math.log10(high))
        ax.set_yticks([10**tick.value for tick in ticks], [tick.label for tick in ticks])
        ax.yaxis.set_minor_locator(NullLocator())
    ax.set_ylim(low, high)
