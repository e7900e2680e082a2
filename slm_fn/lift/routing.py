"""The balance loss of a dual feed-forward, and counts of the tokens on each of its paths.

Invariant: `num_lite + num_expert + num_dropped` is the number of tokens read, once for every
layer that routes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Aux, LMBatch, Loss, Objective, Params, SeededBatch

ROUTES = ("lite", "expert", "dropped")
"""The paths of a token; aux counts them as `num_lite`, `num_expert`, `num_dropped`."""


def with_balance_loss(
    coefficient: float, expert_share: float = 0.5
) -> Callable[[Objective], Objective]:
    """Lifts `Objective -> Objective`: adds `coefficient * balance` to the loss, and counts to aux.

    With f the share of a row's tokens that chose the expert and P its mean probability, balance is
    `f P / s + (1 - f) (1 - P) / (1 - s)` for a target share s of the expert: 1 where both are s;
    a mean over layers and rows. A row is weighted by its number of targets, so micro-batches add
    up to the full batch.

    aux gains the mean `balance`, and `num_lite`, `num_expert`, `num_dropped`: tokens summed over
    layers, padding included. A dropped token chose the expert when its capacity was used up.

    Args:
        coefficient: the weight of the balance loss.
        expert_share: the target share of tokens for the expert, between 0 and 1.

    Raises:
        ValueError: the model has no dual feed-forward.

    Example:
        >>> from functools import partial
        >>> from slm_fn.loss.lm import next_token
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64, ffn="dual")
        >>> loss = with_balance_loss(0.01)(next_token)(partial(gpt.apply, config))
        >>> batch = LMBatch(torch.zeros(3, 9, dtype=torch.long), torch.ones(3, 8))
        >>> _, aux = loss(gpt.init(config, 0), batch)
        >>> num_tokens = sum(aux[name].item() for name in ("num_lite", "num_expert", "num_dropped"))
        >>> num_tokens == 3 * 8 * 2
        True

    References: arXiv 2101.03961, section 2.2 (two equal experts there), by row as in 2405.04434.
    """

    def lift(objective: Objective) -> Objective:
        def balanced_objective(apply: Apply) -> Loss:
            def loss(params: Params, batch: Any) -> tuple[Tensor, Aux]:
                recording_apply, routes = _record_routes(apply)
                value, aux = objective(recording_apply)(params, batch)
                if not routes:
                    raise ValueError(
                        "the balance loss is for a dual feed-forward; set model.ffn to dual"
                    )
                balance = _mean_balance(routes, expert_share, batch)
                aux = {**aux, "balance": balance.detach(), **_sum_counts(routes)}
                return value + coefficient * balance, aux

            return loss

        return balanced_objective

    return lift


def _record_routes(apply: Apply) -> tuple[Apply, list[Tensor]]:
    """Returns the model and a list to which each of its calls appends the routes of every layer."""
    routes: list[Tensor] = []

    def record(name: str, route: Tensor) -> None:
        routes.append(route)

    def recording_apply(params: Params, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        return apply(params, *args, on_aux=record, **kwargs)

    return recording_apply, routes


def _mean_balance(
    routes: list[Tensor],
    expert_share: float,
    batch: Any,
) -> Float[Tensor, ""]:
    balances = [_balance(route, expert_share, _row_weights(batch, route)) for route in routes]
    return torch.stack(balances).mean()


def _balance(
    route_BT3: Tensor,
    share: float,
    weight_B: Tensor,
) -> Float[Tensor, ""]:
    """Returns the balance of one layer, averaged over rows by their weight."""
    probability_B, chosen_B, _ = route_BT3.mean(1).unbind(-1)
    expert_B = chosen_B * probability_B / share
    lite_B = (1 - chosen_B) * (1 - probability_B) / (1 - share)
    balance_B = expert_B + lite_B
    total = weight_B.sum()
    return (balance_B * weight_B).sum() / torch.where(total > 0, total, 1)


def _row_weights(batch: Any, route: Tensor) -> Float[Tensor, " B"]:
    """Returns the number of targets in every row; 1 per row for other kinds of batches (pairs)."""
    rows = batch.batch if isinstance(batch, SeededBatch) else batch
    if isinstance(rows, LMBatch):
        return rows.mask.sum(-1)
    return route.new_ones(route.shape[0])


def _sum_counts(routes: list[Tensor]) -> Aux:
    """Returns how many tokens took each path, summed over layers."""
    counts = torch.stack([_count_tokens(route) for route in routes]).sum(0).unbind()
    return {f"num_{name}": count for name, count in zip(ROUTES, counts, strict=True)}


def _count_tokens(route_BT3: Tensor) -> Tensor:
    """Returns the tokens on the lite path, on the expert's and dropped, of one layer: (3,)."""
    is_true_BT3 = route_BT3.detach() > 0.5
    _, chosen, dropped = is_true_BT3.flatten(0, 1).sum(0).unbind()
    num_tokens = torch.full_like(chosen, route_BT3[..., 0].numel())
    return torch.stack([num_tokens - chosen, chosen - dropped, dropped])
