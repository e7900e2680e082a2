"""Measurements stored in the optimizer state: snapshots, update ratios, the gradient noise scale.

Invariant: these transforms return the updates unchanged; what they measure is in their state, and
`read_metrics` returns it as a flat dict.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import tree
from slm_fn.core.types import Params, Transform, Updates
from slm_fn.optim.directions import bias_correction, zero_count, zeros_like
from slm_fn.optim.guard import LossScaleState, SpikeState
from slm_fn.optim.transforms import ClipState


class SnapshotState(NamedTuple):
    """The last value of the function, keyed by the name of the snapshot."""

    value: dict[str, Any]


def snapshot(name: str, f: Callable[[Updates, Params], Any]) -> Transform:
    """Stores `f(updates, params)` in its state and passes the updates on.

    Args:
        name: key of the value in the state, and prefix of the metric's name.
        f: returns a tensor or a nested dict of tensors.

    Example:
        >>> def norm(updates, params):
        ...     return tree.global_norm(updates)
        >>> tx, w = snapshot("norm", norm), {"w": torch.ones(4)}
        >>> read_metrics(tx.update(w, tx.init(w), w)[1])
        {'norm': tensor(2.)}
    """

    def init(params: Params) -> SnapshotState:
        return SnapshotState({name: f(zeros_like(params), params)})

    def update(
        updates: Updates,
        state: SnapshotState,
        params: Params,
    ) -> tuple[Updates, SnapshotState]:
        return updates, SnapshotState({name: f(updates, params)})

    return Transform(init, update)


def leaf_norms(name: str = "grad_norm") -> Transform:
    """A snapshot of the norm of every leaf; of the gradients if it is first in a chain."""
    return snapshot(name, lambda updates, params: tree.map(tree.global_norm, updates))


def update_ratio(name: str = "update_ratio") -> Transform:
    """A snapshot of `|update| / |param|` per leaf; it belongs at the end of a chain.

    Values near 1e-3 are usual in a healthy run.
    """

    def ratio(update: Tensor, param: Tensor) -> Tensor:
        return tree.global_norm(update) / tree.global_norm(param).clamp(min=1e-12)

    return snapshot(name, lambda updates, params: tree.map(ratio, updates, params))


class NoiseScaleState(NamedTuple):
    """The mean gradient, the estimated signal and noise, and the number of updates."""

    mu: Params
    signal: Tensor  # () float32: |G|^2, of the true gradient
    noise: Tensor  # () float32: tr(Sigma) / B, variance of a batch's gradient
    num_updates: Tensor  # () float32


def gradient_noise_scale(decay: float = 0.9, memory: float = 0.99) -> Transform:
    """The simple noise scale `tr(Sigma) / |G|^2`, in units of the batch size.

    Below 1, a larger batch gains little. The paper compares the gradients of a small and of a large
    batch. Here the large batch is the mean of the last gradients, weighted by `decay`: if these are
    independent, it has the share `sum w^2 / (sum w)^2` of the variance of one gradient. The true
    gradient must be nearly constant for `1 / (1 - decay)` steps, otherwise its change counts as
    noise.

    Args:
        decay: of the mean gradient.
        memory: decay of the running averages of both estimates; the ratio is taken last, since the
            mean of ratios would be biased.

    References: arXiv 1812.06162, appendix A.
    """

    def init(params: Params) -> NoiseScaleState:
        zero = zero_count(params)
        return NoiseScaleState(zeros_like(params), zero, zero, zero)

    def update(
        updates: Updates,
        state: NoiseScaleState,
        params: Params,
    ) -> tuple[Updates, NoiseScaleState]:
        num_updates = state.num_updates + 1
        mu = tree.map(lambda mean, g: mean.lerp(g, 1 - decay), state.mu, updates)
        correction = bias_correction(decay, num_updates)
        square_of_one = tree.global_norm(updates).square()
        square_of_mean = (tree.global_norm(mu) / correction).square()
        # sum w^2 / (sum w)^2; it is 1 for the first gradient, which gives no estimate.
        square_correction = bias_correction(decay * decay, num_updates)
        share = (1 - decay) / (1 + decay) * square_correction / correction.square()
        has_estimate = num_updates > 1
        difference = torch.where(has_estimate, 1 - share, 1.0)
        step_decay = torch.where(has_estimate, memory, 1.0)
        signal = (square_of_mean - share * square_of_one) / difference
        noise = (square_of_one - square_of_mean) / difference
        new_state = NoiseScaleState(
            mu=mu,
            signal=torch.lerp(signal, state.signal, step_decay),
            noise=torch.lerp(noise, state.noise, step_decay),
            num_updates=num_updates,
        )
        return updates, new_state

    return Transform(init, update)


def read_metrics(opt_state: Any) -> dict[str, Tensor]:
    """Returns every measurement in an optimizer state as a flat dict for a log line.

    The values are tensors on the device of the state.

    Example:
        >>> from slm_fn.optim.transforms import clip_by_global_norm
        >>> tx, w = clip_by_global_norm(1.0), {"w": torch.ones(4)}
        >>> read_metrics(tx.update(w, tx.init(w), w)[1])
        {'clip_factor': tensor(0.5000), 'clipped_share': tensor(1.)}
    """
    match opt_state:
        case SnapshotState(value):
            leaves = tree.named_leaves(value).items()
            return {path: leaf for path, leaf in leaves if isinstance(leaf, Tensor)}
        case NoiseScaleState(signal=signal, noise=noise):
            return {"noise_scale": noise / signal.clamp(min=1e-30)}
        case ClipState(factor=factor, num_clipped=num_clipped, num_updates=num_updates):
            clipped_share = num_clipped / num_updates.clamp(min=1)
            return {"clip_factor": factor, "clipped_share": clipped_share}
        case SpikeState(norm=norm, weight=weight, num_spikes=num_spikes):
            return {"running_grad_norm": norm / weight.clamp(min=1e-12), "spikes": num_spikes}
        case LossScaleState(scale=scale):
            return {"loss_scale": scale}
        case tuple():
            metrics: dict[str, Tensor] = {}
            for inner_state in opt_state:
                metrics |= read_metrics(inner_state)
            return metrics
    return {}
