"""Curves of runs: which diagrams to draw of which keys against what, each with its lines; drawn as pictures or a page.

Invariant: a curve holds the numbers of metrics.jsonl; what is smoothed stands beside them and is marked as such.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np

from slm_fn.pipeline.runs import Run, titles

X = Literal["steps", "tokens", "seconds", "flops"]
COLUMN: dict[X, str] = {"steps": "step", "tokens": "tokens", "seconds": "seconds", "flops": "flops"}
LABEL: dict[X, str] = {"steps": "steps", "tokens": "tokens", "seconds": "seconds", "flops": "FLOPs"}
NAMES = {"lr": "Learning rate", "grad_norm": "Gradient norm", "tok_per_s": "Tokens per second"}
SMOOTH_FROM = 30
"""Points from which a noisy curve is drawn thin with a smooth one over it."""


class Curve(NamedTuple):
    """One line of a diagram. `raw` is thin, `smooth` its average, `points` are measured now and then."""

    run: int
    name: str
    kind: Literal["raw", "smooth", "points"]
    x: np.ndarray
    y: np.ndarray


class Chart(NamedTuple):
    """One diagram: its heading, its axes, the curves of all runs."""

    title: str
    x: str
    y: str
    log_y: bool
    curves: list[Curve]


def charts(
    runs: Sequence[Run], xs: Sequence[X] = (), keys: Sequence[str] = (), log_y: bool = False, width: float | None = None
) -> tuple[list[str], list[Chart]]:
    """The runs' names, and the diagrams to draw of them.

    By default the loss against steps, and beside it what tells more: of one run its learning rate and gradient norm
    (tokens, seconds and FLOPs would only change the axis), of several the loss against what it cost.

    Args:
        xs: against what; each gets a diagram of the loss.
        keys: more columns of metrics.jsonl, each drawn on its own against the first of `xs`; a prefix such as
            `acts/` or `grad_norm/` takes all that begin with it.
        log_y: losses on a logarithmic axis.
        width: how many lines of the diary are averaged for the smooth curve (default: a fortieth of them).

    Raises:
        ValueError: a run has no lines yet, none of them knows a key, or none counts what `xs` asks for.
    """
    for run in runs:
        if not run.rows:
            raise ValueError(f"{run.path}: no lines in its metrics.jsonl yet; nothing to draw")
    counted: list[X] = [x for x in get_args(X) if any(run.column(COLUMN[x]) for run in runs)]
    if len(runs) == 1:
        drawn, extra = list(xs) or counted[:1], [] if xs or keys else ["lr", "grad_norm"]
    else:
        drawn, extra = list(xs) or counted, []
    for x in drawn:
        if x not in counted:
            raise ValueError(f"no run here counts {x}; there are {', '.join(counted)}")
    known = list(dict.fromkeys(key for run in runs for key in run.names()))
    extra = [key for key in extra if key in known] + _chosen(keys, known)
    found = [_loss(runs, x, log_y, width) for x in drawn] + [_of(runs, drawn[0], key, width) for key in extra]
    return titles(runs), found


def _chosen(keys: Sequence[str], known: Sequence[str]) -> list[str]:
    found: list[str] = []
    for key in keys:
        fitting = [name for name in known if name == key] or [name for name in known if name.startswith(key)]
        if not fitting:
            raise ValueError(f"no line of these runs has {key!r}; they have {', '.join(known)}")
        found += fitting
    return list(dict.fromkeys(found))


def _loss(runs: Sequence[Run], x: X, log_y: bool, width: float | None) -> Chart:
    curves = [curve for i, run in enumerate(runs) for curve in _curves(run, i, x, "train_loss", width)]
    curves += [curve for i, run in enumerate(runs) for curve in _points(run, i, x, "val_loss")]
    return Chart(f"Loss by {LABEL[x]}", LABEL[x], "loss (nats)" + (", log scale" if log_y else ""), log_y, curves)


def _of(runs: Sequence[Run], x: X, key: str, width: float | None) -> Chart:
    sparse = key.startswith("val_")
    made = [_points(run, i, x, key) if sparse else _curves(run, i, x, key, width) for i, run in enumerate(runs)]
    return Chart(NAMES.get(key, key), LABEL[x], "", False, [curve for curves in made for curve in curves])


def _xy(run: Run, x: X, key: str) -> tuple[np.ndarray, np.ndarray]:
    places, values = dict(run.column(COLUMN[x])), run.column(key)
    kept = [(places[i], y) for i, y in values if i in places]
    pairs = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _curves(run: Run, index: int, x: X, key: str, width: float | None) -> list[Curve]:
    xs, ys = _xy(run, x, key)
    if not len(xs):
        return []
    # A schedule is smooth already, and averaging would bend its corners.
    if key == "lr" or (len(xs) < SMOOTH_FROM and width is None):
        return [Curve(index, key, "smooth", xs, ys)]
    return [Curve(index, key, "raw", xs, ys), Curve(index, key, "smooth", xs, smooth(ys, width or len(ys) / 40))]


def _points(run: Run, index: int, x: X, key: str) -> list[Curve]:
    xs, ys = _xy(run, x, key)
    return [Curve(index, key, "points", xs, ys)] if len(xs) else []


def smooth(values: np.ndarray, width: float) -> np.ndarray:
    """A Gaussian average over about `width` values, centred, so that nothing is shifted to the right.

    Example:
        >>> smooth(np.array([0.0, 0.0, 1.0, 0.0, 0.0]), 1.0).round(2).tolist()
        [0.01, 0.21, 0.57, 0.21, 0.01]
    """
    reach = max(1, round(2 * width))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(width * 0.7, 1e-9)) ** 2)
    inside = np.convolve(np.ones_like(values), kernel)[reach : reach + len(values)]
    return np.convolve(values, kernel)[reach : reach + len(values)] / inside


def bounds(chart: Chart) -> tuple[float, float]:
    """From where to where a diagram reaches: a single spike may leave it, what is smooth or measured stays inside."""
    kept = [np.empty(0)]
    for curve in chart.curves:
        y = curve.y[curve.y > 0] if chart.log_y else curve.y
        kept.append(np.quantile(y, (0.02, 0.98)) if curve.kind == "raw" and len(y) else y)
    values = np.concatenate(kept)
    if not len(values):
        return 0.5, 1.0
    low, high = float(values.min()), float(values.max())
    if chart.log_y:
        return low / 1.04, high * 1.04
    room = 0.05 * (high - low) or max(abs(low) * 0.1, 0.5)
    return low - room, high + room


def thin(curve: Curve, most: int) -> Curve:
    """At most about `most` points: of each stretch the lowest and the highest, so that no spike is lost.

    Example:
        >>> ys = np.zeros(1000)
        >>> ys[437] = 9.0
        >>> thinned = thin(Curve(0, "loss", "raw", np.arange(1000.0), ys), 100)
        >>> len(thinned.y) <= 102, thinned.y.max().item()
        (True, 9.0)
    """
    if len(curve.x) <= most:
        return curve
    kept = {0, len(curve.x) - 1}
    for part in np.array_split(np.arange(len(curve.x)), max(1, most // 2)):
        kept |= {int(part[np.argmin(curve.y[part])]), int(part[np.argmax(curve.y[part])])}
    order = np.array(sorted(kept))
    return curve._replace(x=curve.x[order], y=curve.y[order])
