"""Measures that ride in an optimizer's state: snapshots of any function, update ratios, the gradient noise scale.

Invariant: a measure is the identity on updates; what it saw is in the state, and `read` tells it as flat figures.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates
from slm_fn.optim.directions import counter, gathered, zeros
from slm_fn.optim.guard import ScaleState, SpikeState
from slm_fn.optim.transforms import ClipState


class SnapshotState(NamedTuple):
    """What the function last returned, by the snapshot's name."""

    value: dict[str, Any]


def snapshot(name: str, f: Callable[[Updates, Params], Any]) -> Transform:
    """The identity, whose state is `f(updates, params)`: a tensor or a dict of them.

    Example:
        >>> tx, w = snapshot("norm", lambda updates, params: tree.global_norm(updates)), {"w": torch.ones(4)}
        >>> read(tx.update(w, tx.init(w), w)[1])
        {'norm': tensor(2.)}
    """

    def init(params: Params) -> SnapshotState:
        return SnapshotState({name: f(zeros(params), params)})

    def update(updates: Updates, state: SnapshotState, params: Params) -> tuple[Updates, SnapshotState]:
        return updates, SnapshotState({name: f(updates, params)})

    return Transform(init, update)


def leaf_norms(name: str = "grad_norm") -> Transform:
    """A snapshot of every leaf's norm. At the front of a chain: the gradients'."""
    return snapshot(name, lambda updates, params: tree.map(tree.global_norm, updates))


def update_ratio(name: str = "update_ratio") -> Transform:
    """A snapshot of `|update| / |param|` per leaf, near 1e-3 in a run that goes well. At the end of a chain."""

    def ratio(u: Tensor, p: Tensor) -> Tensor:
        return tree.global_norm(u) / tree.global_norm(p).clamp(min=1e-12)

    return snapshot(name, lambda updates, params: tree.map(ratio, updates, params))


class NoiseState(NamedTuple):
    """The gradients' running mean, running estimates of the two parts of their size, and the number of updates."""

    mu: Params
    signal: Tensor  # () float32: |G|^2, of the true gradient
    noise: Tensor  # () float32: tr(Sigma) / B, of a batch's gradient about it
    num_updates: Tensor  # () float32


def noise_scale(decay: float = 0.9, memory: float = 0.99) -> Transform:
    """The simple noise scale, `tr(Sigma) / |G|^2` in batches: below 1, larger batches gain little.

    The paper compares the gradient of a small batch to that of a large one. Here the large one is the mean of the
    last gradients, weighed by `decay`: of independent ones it has `sum w^2 / (sum w)^2` of the noise of one. The true
    gradient must stay put for `1 / (1 - decay)` steps, else its motion is counted as noise.

    Args:
        memory: decay of the running averages of both estimates, whose quotient is taken last, as it must be.

    References: arXiv 1812.06162, appendix A.
    """

    def update(updates: Updates, state: NoiseState, params: Params) -> tuple[Updates, NoiseState]:
        n = state.num_updates + 1
        mu = tree.map(lambda m, g: m.lerp(g, 1 - decay), state.mu, updates)
        one = tree.global_norm(updates).square()
        mean = (tree.global_norm(mu) / gathered(decay, n)).square()
        # sum w^2 / (sum w)^2; of a first gradient it is 1, which tells nothing.
        share = (1 - decay) / (1 + decay) * gathered(decay * decay, n) / gathered(decay, n).square()
        told = n > 1
        rest = torch.where(told, 1 - share, 1.0)
        keep = torch.where(told, memory, 1.0)
        signal = torch.lerp((mean - share * one) / rest, state.signal, keep)
        noise = torch.lerp((one - mean) / rest, state.noise, keep)
        return updates, NoiseState(mu, signal, noise, n)

    def init(params: Params) -> NoiseState:
        zero = counter(params)
        return NoiseState(zeros(params), zero, zero, zero)

    return Transform(init, update)


def read(opt_state: Any) -> dict[str, Tensor]:
    """Every measure in an optimizer's state as flat figures, on its device: what a log line adds.

    Example:
        >>> from slm_fn.optim.transforms import clip_by_global_norm
        >>> tx, w = clip_by_global_norm(1.0), {"w": torch.ones(4)}
        >>> read(tx.update(w, tx.init(w), w)[1])
        {'clip_factor': tensor(0.5000), 'clipped_share': tensor(1.)}
    """
    match opt_state:
        case SnapshotState(value):
            return {path: leaf for path, leaf in tree.paths(value).items() if isinstance(leaf, Tensor)}
        case NoiseState(_, signal, noise, _):
            return {"noise_scale": noise / signal.clamp(min=1e-30)}
        case ClipState(_, factor, clipped, updates):
            return {"clip_factor": factor, "clipped_share": clipped / updates.clamp(min=1)}
        case SpikeState(norm, weight, _, spikes):
            return {"running_grad_norm": norm / weight.clamp(min=1e-12), "spikes": spikes}
        case ScaleState(scale, _):
            return {"loss_scale": scale}
        case tuple():
            return {name: value for part in opt_state for name, value in read(part).items()}
    return {}
