"""Curves as one HTML page: SVG that stands by itself, values under the cursor, light and dark, and a table.

Invariant: the page loads nothing from anywhere, and whatever a run is called cannot break out of its text.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from importlib.resources import files as resources
from typing import Any

import msgspec
import numpy as np

from slm_fn.pipeline.curves import Chart, Curve, bounds, thin

COLOURS = 8
MOST_POINTS = 600
"""Of one curve: about the pixels that a diagram is wide."""
SIDE = 1000.0
"""The SVG's own units; it is stretched to its frame, and strokes and letters are not."""
ROOM = 1.02
"""How far the axis reaches beyond the last step, whose dot would be cut in half."""
COLUMNS = ("status", "steps", "tokens", "loss", "best val", "tok/s", "device")


def page(names: Sequence[str], charts: Sequence[Chart], table: Sequence[dict[str, Any]]) -> str:
    """The whole document, of the runs' names, their diagrams, and their rows of `runs.table`."""
    folder = resources("slm_fn.pipeline") / "static"
    style, script = ((folder / f"curves.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    drawn = [_figure(chart) for chart in charts]
    told = {"runs": list(names), "colours": COLOURS, "charts": [data for _, data in drawn]}
    # `</` would end the script element wherever it stands.
    data = msgspec.json.encode(told).decode().replace("</", "<\\/")
    title = html.escape(names[0] if len(names) == 1 else f"{len(names)} runs")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<h1>{title}</h1>
{_legend(names)}
<div class="charts">
{"".join(figure for figure, _ in drawn)}</div>
<p class="note">Thin: means over the steps between two log lines. Thick: their average. Dots: validation.</p>
{_table(names, table)}
<script type="application/json" id="data">{data}</script>
<script>
{script}</script>
</body>
</html>
"""


def _own(run: int) -> str:
    return f'style="--own: var(--c{run % COLOURS})"'


def _legend(names: Sequence[str]) -> str:
    items = (
        f'<li {_own(i)}><button type="button" data-run="{i}" aria-pressed="true" disabled><i></i>{html.escape(name)}'
        "</button></li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="runs" aria-label="Runs: press to hide or show">{"".join(items)}</ul>'


def _figure(chart: Chart) -> tuple[str, dict[str, Any]]:
    """A diagram as HTML, and what the script wants to know of it."""
    curves = [thin(curve, MOST_POINTS) for curve in chart.curves]
    low, high = 0.0, ROOM * max((float(curve.x.max()) for curve in curves), default=0.0) or 1.0
    bottom, top = _scaled(np.array(bounds(chart)), chart.log_y).tolist()

    def place(values: np.ndarray, start: float, end: float) -> np.ndarray:
        return (values - start) / (end - start) * SIDE

    def path(curve: Curve) -> str:
        xs, ys = place(curve.x, low, high), SIDE - place(_scaled(curve.y, chart.log_y), bottom, top)
        pairs = [f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True) if math.isfinite(y)]
        marks = " dashed" if curve.run >= COLOURS and curve.kind == "smooth" else ""
        own = f'data-run="{curve.run}" {_own(curve.run)}'
        if curve.kind == "points":  # lines of no length with round ends: dots that stay round
            dots = "".join(f"M{pair}h0" for pair in pairs)
            return f'<path class="ring" data-run="{curve.run}" d="{dots}"/><path class="points" {own} d="{dots}"/>'
        return f'<path class="{curve.kind}{marks}" {own} d="M{"L".join(pairs)}"/>'

    ticks_x, ticks_y = ticks(low, high), (log_ticks(bottom, top) if chart.log_y else ticks(bottom, top))
    grid = "".join(f"M0 {SIDE - (t - bottom) / (top - bottom) * SIDE:.1f}h{SIDE:.0f}" for t, _ in ticks_y)
    labels = "".join(f'<span class="tick x" style="left:{(t - low) / (high - low):.2%}">{s}</span>' for t, s in ticks_x)
    labels += "".join(
        f'<span class="tick y" style="bottom:{(t - bottom) / (top - bottom):.2%}">{s}</span>' for t, s in ticks_y
    )
    order = sorted(curves, key=lambda curve: ("raw", "smooth", "points").index(curve.kind))
    title, unit, x = (html.escape(text) for text in (chart.title, chart.y, chart.x))
    figure = f"""<figure>
<figcaption>{title}{f"<small>{unit}</small>" if unit else ""}</figcaption>
<div class="frame"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="{title} by {x}">\
<path class="grid" d="{grid}"/>{"".join(path(curve) for curve in order if len(curve.x))}</svg>
{labels}<span class="axis">{x}</span></div>
</figure>
"""
    seen = [curve for curve in curves if curve.kind != "raw"]
    data = [{"run": c.run, "kind": c.kind, "x": c.x.tolist(), "y": [float(f"{y:.6g}") for y in c.y]} for c in seen]
    return figure, {"label": chart.x, "low": low, "high": high, "curves": data}


def _scaled(values: np.ndarray, log: bool) -> np.ndarray:
    return np.log10(np.where(values > 0, values, np.nan)) if log else values


def ticks(low: float, high: float, most: int = 6) -> list[tuple[float, str]]:
    """Round numbers between two, with labels.

    Example:
        >>> [label for _, label in ticks(0, 23_000)]
        ['0', '5k', '10k', '15k', '20k']
    """
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    numbers = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(number, short(number, step)) for number in numbers]


def log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers between two powers of ten, by their exponents.

    Example:
        >>> [label for _, label in log_ticks(0.1, 1.0)]
        ['1.5', '2', '3', '4', '5', '7', '10']
    """
    factors: tuple[float, ...] = (1, 2, 5) if high - low < 2.5 else (1,)
    if high - low < 1.2:
        factors = (1, 1.5, 2, 3, 4, 5, 7) if high - low > 0.5 else (1, 1.2, 1.4, 1.7, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
    powers = range(math.floor(low), math.ceil(high) + 1)
    numbers = [factor * 10.0**power for power in powers for factor in factors]
    found = [(math.log10(number), _plain(number)) for number in numbers if low <= math.log10(number) <= high]
    return found if len(found) > 1 else [(at, f"{10**at:.3g}") for at in np.linspace(low, high, 4)]


def _plain(number: float) -> str:
    return short(number, number) if number >= 1000 else f"{number:.3g}"


def short(number: float, step: float) -> str:
    """A tick's label, as exact as the step between two.

    Example:
        >>> short(1_500_000, 500_000), short(0.02, 0.005), short(3e-5, 1e-5), short(4e18, 1e18)
        ('1.5M', '0.020', '3e-05', '4E')
    """
    if number == 0:
        return "0"
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if 1e21 > abs(number) >= size:
            return f"{number / size:.4g}{letter}"
    if abs(number) >= 1e21 or abs(number) < 1e-3:
        return f"{number:.2g}"
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{number:.{digits}f}"


def _table(names: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    def cells(row: dict[str, Any]) -> list[str]:
        total = row["total_steps"]
        figures = [row["train_loss"], row["best_val_loss"]]
        return [
            row["status"],
            f"{row['step']:,}" + (f" / {total:,}" if total else ""),
            f"{row['tokens']:,}",
            *("" if value is None else f"{value:.4f}" for value in figures),
            "" if row["tok_per_s"] is None else f"{row['tok_per_s']:,.0f}",
            row["device"] or "",
        ]

    head = "".join(f'<th scope="col">{name}</th>' for name in ("run", *COLUMNS))
    body = "".join(
        f'<tr><th scope="row" {_own(i)}><i></i>{html.escape(name)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row))
        + "</tr>"
        for i, (name, row) in enumerate(zip(names, rows, strict=True))
    )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table of runs"><table><caption>Where they got to'
        f"</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
