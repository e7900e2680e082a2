"""Dropout for objectives: a batch that carries one dropout seed per row, passed to the model.

Invariant: the same elements of a row are dropped in a full batch, in a micro-batch, on another
rank or alone.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from slm_fn.core.types import Apply, Aux, Loss, Objective, Params, SeededBatch


def with_dropout_seeds(objective: Objective) -> Objective:
    """Lifts `Objective -> Objective`: a `SeededBatch` passes its seeds to the model.

    An objective that runs the model more than once (both sides of a pair) passes the same seeds
    each time.

    Example:
        >>> import torch
        >>> from slm_fn.core import random
        >>> from slm_fn.core.types import LMBatch
        >>> from slm_fn.loss.lm import next_token
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64, dropout=0.1)
        >>> batch = LMBatch(torch.zeros(2, 9, dtype=torch.long), torch.ones(2, 8))
        >>> seeds = random.row_seeds(0, first_row=0, num_rows=2)
        >>> loss = with_dropout_seeds(next_token)(partial(gpt.apply, config))
        >>> value, aux = loss(gpt.init(config, 0), SeededBatch(batch, seeds))
        >>> aux["weight"].item()
        16.0
    """

    def lift(apply: Apply) -> Loss:
        def loss(params: Params, batch: SeededBatch) -> tuple[Tensor, Aux]:
            training_apply = partial(apply, dropout_seeds=batch.seeds)
            return objective(training_apply)(params, batch.batch)

        return loss

    return lift
