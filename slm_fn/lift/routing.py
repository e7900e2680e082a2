"""Routing: the loss that keeps both paths of a dual feed-forward in use, and counts of where the tokens went.

Invariant: `num_lite + num_expert + num_dropped` is the number of tokens read, once for every layer that routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Aux, LMBatch, Loss, Noisy, Objective, Params

ROUTES = ("lite", "expert", "dropped")
"""What may become of a token; aux counts them as `num_lite`, ..."""


def balanced(coefficient: float, expert_share: float = 0.5) -> Callable[[Objective], Objective]:
    """Lift `Objective -> Objective`: adds `coefficient * balance` to the loss, and to aux what became of the tokens.

    With f the share of a row's tokens that chose the expert and P its mean probability, balance is
    `f P / s + (1 - f) (1 - P) / (1 - s)` for an expert meant for the share s: 1 where both are s, mean over layers and
    rows. A row weighs as much as it has targets, so that parts of a batch add up to the whole.

    aux gains the mean `balance`, and `num_lite`, `num_expert`, `num_dropped`: tokens summed over layers, padding
    included; a dropped token asked for the expert and found no seat.

    Example:
        >>> from functools import partial
        >>> from slm_fn.loss.lm import next_token
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64, ffn="dual")
        >>> loss = balanced(0.01)(next_token)(partial(gpt.apply, config))
        >>> batch = LMBatch(torch.zeros(3, 9, dtype=torch.long), torch.ones(3, 8))
        >>> _, aux = loss(gpt.init(config, 0), batch)
        >>> sum(aux[name].item() for name in ("num_lite", "num_expert", "num_dropped")) == 3 * 8 * 2
        True

    Raises:
        ValueError: the model has no dual feed-forward.

    References: arXiv 2101.03961, section 2.2 (two equal experts there), by row as in 2405.04434.
    """

    def lift(objective: Objective) -> Objective:
        def of(apply: Apply) -> Loss:
            def loss(params: Params, batch: Any) -> tuple[Tensor, Aux]:
                routes: list[Tensor] = []

                def told(params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
                    return apply(params, *args, watch=lambda _, route: routes.append(route), **kwargs)

                value, aux = objective(told)(params, batch)
                if not routes:
                    raise ValueError("the balance loss is for a dual feed-forward; set model.ffn to dual")
                balance = torch.stack(
                    [_balance(route, expert_share, _weights(batch, route)) for route in routes]
                ).mean()
                counts = torch.stack([_counts(route) for route in routes]).sum(0).unbind()
                named = {f"num_{route}": count for route, count in zip(ROUTES, counts, strict=True)}
                return value + coefficient * balance, {**aux, "balance": balance.detach(), **named}

            return loss

        return of

    return lift


def _balance(route_BT3: Tensor, share: float, weight_B: Tensor) -> Float[Tensor, ""]:
    chance, chosen, _ = route_BT3.mean(1).unbind(-1)
    row_B = chosen * chance / share + (1 - chosen) * (1 - chance) / (1 - share)
    total = weight_B.sum()
    return (row_B * weight_B).sum() / torch.where(total > 0, total, 1)


def _weights(batch: Any, route: Tensor) -> Float[Tensor, " B"]:
    """Targets in every row; one for each row where a batch is not of plain rows (pairs)."""
    rows = batch.batch if isinstance(batch, Noisy) else batch
    return rows.mask.sum(-1) if isinstance(rows, LMBatch) else route.new_ones(route.shape[0])


def _counts(route_BT3: Tensor) -> Tensor:
    _, chosen, dropped = (route_BT3.detach() > 0.5).flatten(0, 1).sum(0).unbind()
    return torch.stack([torch.full_like(chosen, route_BT3[..., 0].numel()) - chosen, chosen - dropped, dropped])
