"""Charts of runs: which metrics to draw against which axis, and the curves of each chart.

Invariant: a curve holds the numbers of metrics.jsonl; a smoothed curve is marked as such and is
drawn beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from slm_fn.pipeline.reports.runs import Run, short_names

XAxis = Literal["steps", "tokens", "seconds", "flops"]
X_COLUMNS: dict[XAxis, str] = {
    "steps": "step",
    "tokens": "tokens",
    "seconds": "seconds",
    "flops": "flops",
}
X_LABELS: dict[XAxis, str] = {
    "steps": "steps",
    "tokens": "tokens",
    "seconds": "seconds",
    "flops": "FLOPs",
}
KEY_TITLES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "tok_per_s": "Tokens per second",
}
MIN_POINTS_TO_SMOOTH = 30
"""A metric with fewer points than this is drawn as it is."""


class Curve(NamedTuple):
    """One metric of one run.

    Attributes:
        run: index of the run.
        name: key of the metric in metrics.jsonl.
        kind: "raw" is every log line, "smooth" their moving average (or a metric that needs none),
            "points" a metric that is measured at intervals, such as a validation loss.
        x: values on the x axis, shape (N,).
        y: values of the metric, shape (N,).
    """

    run: int
    name: str
    kind: Literal["raw", "smooth", "points"]
    x: np.ndarray
    y: np.ndarray


class Chart(NamedTuple):
    """One chart: its title, its axes, and the curves of all runs."""

    title: str
    x_label: str
    y_label: str
    log_y: bool
    curves: list[Curve]


def make_charts(
    runs: Sequence[Run],
    xs: Sequence[XAxis] = (),
    keys: Sequence[str] = (),
    log_y: bool = False,
    smooth_width: float | None = None,
) -> tuple[list[str], list[Chart]]:
    """Returns the names of the runs and the charts that compare them.

    By default a single run gets its loss against steps, its learning rate and its gradient norm;
    its loss against tokens, seconds or FLOPs would show the same curve. Several runs get their
    losses against every axis that one of them has.

    Args:
        runs: the runs to compare.
        xs: x axes; each gets a chart of the loss.
        keys: more columns of metrics.jsonl, each with a chart against the first of `xs`. A prefix,
            such as `acts/` or `grad_norm/`, selects all columns that begin with it.
        log_y: draw losses on a logarithmic axis.
        smooth_width: log lines over which the smooth curve averages. Default: a fortieth of them.

    Returns:
        One short name for each run, and the charts.

    Raises:
        ValueError: a run has no log lines, or none of the runs has a column of `xs` or `keys`.
    """
    _check_rows(runs)
    axes = _select_axes(runs, xs)
    names = _column_names(runs)
    selected_keys: list[str] = []
    if len(runs) == 1 and not xs and not keys:
        selected_keys = [key for key in ("lr", "grad_norm") if key in names]
    selected_keys += _match_columns(keys, names)
    charts = [_loss_chart(runs, axis, log_y, smooth_width) for axis in axes]
    charts += [_metric_chart(runs, axes[0], key, smooth_width) for key in selected_keys]
    return short_names(runs), charts


def _check_rows(runs: Sequence[Run]) -> None:
    for run in runs:
        if not run.rows:
            raise ValueError(f"{run.path}: no lines in its metrics.jsonl yet; nothing to draw")


def _select_axes(runs: Sequence[Run], xs: Sequence[XAxis]) -> list[XAxis]:
    """Returns `xs`, or the default axes, after a check that some run has each of them."""
    available: list[XAxis] = []
    for axis in get_args(XAxis):
        if any(run.column(X_COLUMNS[axis]) for run in runs):
            available.append(axis)
    for axis in xs:
        if axis not in available:
            raise ValueError(f"none of these runs counts {axis}; they have {', '.join(available)}")
    if xs:
        return list(xs)
    return available[:1] if len(runs) == 1 else available


def _column_names(runs: Sequence[Run]) -> list[str]:
    """Returns the columns of all runs, in order of first appearance."""
    names: dict[str, None] = {}
    for run in runs:
        names.update(dict.fromkeys(run.column_names()))
    return list(names)


def _match_columns(keys: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the columns that equal a key, or begin with it if none equals it."""
    selected: dict[str, None] = {}
    for key in keys:
        matches = [key] if key in names else [name for name in names if name.startswith(key)]
        if not matches:
            raise ValueError(f"no line of these runs has {key!r}; they have {', '.join(names)}")
        selected.update(dict.fromkeys(matches))
    return list(selected)


def _loss_chart(
    runs: Sequence[Run],
    axis: XAxis,
    log_y: bool,
    smooth_width: float | None,
) -> Chart:
    curves: list[Curve] = []
    for i, run in enumerate(runs):
        curves += _line_curves(run, i, axis, "train_loss", smooth_width)
    for i, run in enumerate(runs):
        curves += _point_curves(run, i, axis, "val_loss")
    scale = ", log scale" if log_y else ""
    return Chart(
        title=f"Loss by {X_LABELS[axis]}",
        x_label=X_LABELS[axis],
        y_label=f"loss (nats){scale}",
        log_y=log_y,
        curves=curves,
    )


def _metric_chart(
    runs: Sequence[Run],
    axis: XAxis,
    key: str,
    smooth_width: float | None,
) -> Chart:
    curves: list[Curve] = []
    for i, run in enumerate(runs):
        if key.startswith("val_"):
            curves += _point_curves(run, i, axis, key)
        else:
            curves += _line_curves(run, i, axis, key, smooth_width)
    return Chart(
        title=KEY_TITLES.get(key, key),
        x_label=X_LABELS[axis],
        y_label="",
        log_y=False,
        curves=curves,
    )


def _read_xy(
    run: Run,
    axis: XAxis,
    key: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of the rows that have both numbers."""
    x_by_row = dict(run.column(X_COLUMNS[axis]))
    points = [(x_by_row[row], y) for row, y in run.column(key) if row in x_by_row]
    points_N2 = np.array(points, dtype=np.float64).reshape(-1, 2)
    return points_N2[:, 0], points_N2[:, 1]


def _line_curves(
    run: Run,
    index: int,
    axis: XAxis,
    key: str,
    smooth_width: float | None,
) -> list[Curve]:
    """Returns the raw and the smooth curve of a metric that every log line has."""
    xs, ys = _read_xy(run, axis, key)
    if not len(xs):
        return []
    is_short = len(xs) < MIN_POINTS_TO_SMOOTH and smooth_width is None
    # A learning-rate schedule is smooth already, and an average would round its corners.
    if key == "lr" or is_short:
        return [Curve(index, key, "smooth", xs, ys)]
    averages = smooth(ys, smooth_width or len(ys) / 40)
    return [Curve(index, key, "raw", xs, ys), Curve(index, key, "smooth", xs, averages)]


def _point_curves(
    run: Run,
    index: int,
    axis: XAxis,
    key: str,
) -> list[Curve]:
    xs, ys = _read_xy(run, axis, key)
    return [Curve(index, key, "points", xs, ys)] if len(xs) else []


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """Returns a centred Gaussian moving average over about `width` values; it does not lag.

    Args:
        values: shape (N,).
        width: values that an average covers, about.

    Returns:
        Shape (N,). At both ends the average is taken over the values that exist.

    Example:
        >>> smooth(np.array([0.0, 0.0, 1.0, 0.0, 0.0]), 1.0).round(2).tolist()
        [0.01, 0.21, 0.57, 0.21, 0.01]
    """
    radius = max(1, round(2 * width))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / max(width * 0.7, 1e-9)) ** 2)
    centre = slice(radius, radius + len(values))
    weights = np.convolve(np.ones_like(values), kernel)[centre]
    return np.convolve(values, kernel)[centre] / weights


def y_bounds(chart: Chart) -> tuple[float, float]:
    """Returns the range of a chart's y axis.

    Every smooth curve and every point is inside. Of a raw curve the highest and the lowest 2 % may
    be outside, so that a single spike does not compress the chart.
    """
    inside = [np.empty(0)]
    for curve in chart.curves:
        ys = curve.y[curve.y > 0] if chart.log_y else curve.y
        if curve.kind == "raw" and len(ys):
            ys = np.quantile(ys, (0.02, 0.98))
        inside.append(ys)
    values = np.concatenate(inside)
    if not len(values):
        return 0.5, 1.0
    low = float(values.min())
    high = float(values.max())
    if chart.log_y:
        return low / 1.04, high * 1.04
    margin = 0.05 * (high - low) or max(abs(low) * 0.1, 0.5)
    return low - margin, high + margin


def downsample(curve: Curve, max_points: int) -> Curve:
    """Returns a curve of about `max_points` points at most that keeps every spike.

    The curve is cut into equal stretches, and the lowest and the highest point of each are kept.

    Example:
        >>> ys = np.zeros(1000)
        >>> ys[437] = 9.0
        >>> curve = downsample(Curve(0, "loss", "raw", np.arange(1000.0), ys), 100)
        >>> len(curve.y) <= 102, curve.y.max().item()
        (True, 9.0)
    """
    num_points = len(curve.x)
    if num_points <= max_points:
        return curve
    selected = {0, num_points - 1}
    for indices in np.array_split(np.arange(num_points), max(1, max_points // 2)):
        selected.add(int(indices[np.argmin(curve.y[indices])]))
        selected.add(int(indices[np.argmax(curve.y[indices])]))
    order = np.array(sorted(selected))
    return curve._replace(x=curve.x[order], y=curve.y[order])
