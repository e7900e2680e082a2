"""Noise for objectives: a batch that carries its rows' chance, handed to the model as an argument.

Invariant: a row is dropped from in the same places in a batch, in a part of it, on another rank or alone.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from slm_fn.core.types import Apply, Aux, Loss, Noisy, Objective, Params


def noisy(objective: Objective) -> Objective:
    """Lift `Objective -> Objective`: of a `Noisy(batch, noise)`, the batch goes to the loss and the noise to the model.

    An objective that runs the model more than once (both sides of a pair) gives each run the same noise.

    Example:
        >>> import torch
        >>> from slm_fn.core import random
        >>> from slm_fn.core.types import LMBatch
        >>> from slm_fn.loss.lm import next_token
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64, dropout=0.1)
        >>> batch = LMBatch(torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 8))
        >>> loss = noisy(next_token)(partial(gpt.apply, config))
        >>> value, aux = loss(gpt.init(config, 0), Noisy(batch, random.row_noise(0, first_row=0, num_rows=2)))
        >>> aux["weight"].item()
        16.0
    """

    def lift(apply: Apply) -> Loss:
        def loss(params: Params, batch: Noisy) -> tuple[Tensor, Aux]:
            return objective(partial(apply, noise=batch.noise))(params, batch.batch)

        return loss

    return lift
