"""Skipped steps: how many in a row, and what to advise when a run diverges.

Invariant: a skipped step leaves the parameters as they were, so what is saved after a fault is the
last good state.
"""

from __future__ import annotations

from slm_fn.core.types import TrainState
from slm_fn.optim.guard import SkipState
from slm_fn.optim.transforms import find_state


def num_skipped_in_a_row(state: TrainState) -> int:
    """Returns how many steps in a row, up to the last one, were skipped."""
    skips = find_state(state.opt_state, SkipState)
    return 0 if skips is None else int(skips.in_a_row)


def divergence_message(step: int, num_skipped: int) -> str:
    """Returns the error of a run that diverged: what happened, what is saved, what to change.

    Args:
        step: the last step.
        num_skipped: how many steps up to it were skipped.
    """
    return (
        f"step {step}: the last {num_skipped} steps were skipped, because their gradients were "
        "NaN, infinite or far too large; the parameters from before them are saved. Lower "
        "optim.learning_rate, raise optim.warmup_steps, or set train.precision to float32; to see "
        "where it begins, set optim.measures to [grad_norms] and train.hooks.forward to [rms]"
    )
