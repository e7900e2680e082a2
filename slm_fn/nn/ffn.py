"""Feed-forward layers: gelu, relu2, the gated geglu and swiglu, and dual, whose gate sends a token one of two ways.

Invariant: one place's result depends on that place alone; only dual's capacity, in training, looks at those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from slm_fn.nn.config import ModelConfig
from slm_fn.nn.ops import affine, linear

Activation = Callable[[Tensor], Tensor]


def plain(params: dict[str, Any], x: Float[Tensor, "B T D"], f: Activation) -> Float[Tensor, "B T D"]:
    """`down(f(up(x)))`.

    References: arXiv 1606.08415 (gelu), 2109.08668 (relu squared).
    """
    return affine(params, "down", f(affine(params, "up", x)))


def gated(params: dict[str, Any], x: Float[Tensor, "B T D"], f: Activation) -> Float[Tensor, "B T D"]:
    """`down(f(gate(x)) * up(x))`: swiglu with silu, geglu with gelu.

    References: arXiv 2002.05202.
    """
    return affine(params, "down", f(affine(params, "gate", x)) * affine(params, "up", x))


def relu2(x: Tensor) -> Tensor:
    """`max(x, 0)^2`."""
    return F.relu(x).square()


LAYERS: dict[str, tuple[Callable[..., Tensor], Activation]] = {
    "swiglu": (gated, F.silu),
    "geglu": (gated, F.gelu),
    "gelu": (plain, F.gelu),
    "relu2": (plain, relu2),
}


def run(
    config: ModelConfig, params: dict[str, Any], x: Float[Tensor, "B T D"], training: bool = False
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T 3"] | None]:
    """The feed-forward that the config names, and where its tokens went if it is `dual` (else None)."""
    if config.ffn == "dual":
        return dual(config, params, x, training)
    layer, f = LAYERS[config.ffn]
    return layer(params, x, f), None


def dual(
    config: ModelConfig, params: dict[str, Any], x: Float[Tensor, "B T D"], training: bool
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T 3"]]:
    """Two SwiGLUs, one small: a token takes the likelier by `softmax(router(x) / temperature)`, scaled by its chance.

    The scale is what lets the gate learn. Without `drop`, and in inference, both paths run and the token's own is
    taken. In training with `drop` the expert runs on the first of each row that ask, as many as its capacity (a
    shape known beforehand), and what is over gets zero.

    Returns:
        The output, and per token: the expert's probability, whether it was chosen, whether the token was dropped.

    References: arXiv 2101.03961.
    """
    # In float32 (Switch's selective precision): rounded, a token on the fence would go another way when decoded.
    gate_BT2 = (linear(params["router"], x.float()) / config.dual.temperature).softmax(-1)
    chosen_BT = gate_BT2[..., 1] > gate_BT2[..., 0]
    lite_BTD = gated(params["lite"], x, F.silu)
    if training and config.dual.drop:
        expert_BTD, dropped_BT = _first_come(params["expert"], x, chosen_BT, config.dual.capacity(x.shape[1]))
    else:
        expert_BTD, dropped_BT = gated(params["expert"], x, F.silu), torch.zeros_like(chosen_BT)
    y = torch.where(chosen_BT[..., None], expert_BTD, lite_BTD)
    route_BT3 = torch.stack([gate_BT2[..., 1], chosen_BT.float(), dropped_BT.float()], -1)
    return y * gate_BT2.amax(-1, keepdim=True).to(y.dtype), route_BT3


def _first_come(
    params: dict[str, Any], x: Float[Tensor, "B T D"], asks_BT: Bool[Tensor, "B T"], capacity: int
) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
    """The expert's output for the first `capacity` tokens of a row that ask, zero elsewhere; and who came too late."""
    B, T, D = x.shape
    queue_BT = asks_BT.cumsum(-1) - 1
    served_BT = asks_BT & (queue_BT < capacity)
    # Whoever is not served writes its place into one seat more, which nobody reads; an empty seat holds place 0.
    seat_BT = torch.where(served_BT, queue_BT, capacity)
    places_BT = torch.arange(T, device=x.device).expand(B, T)
    taken = torch.zeros_like(seat_BT[:, :1]).expand(B, capacity + 1).scatter(1, seat_BT, places_BT)[:, :capacity]
    y = gated(params, x.gather(1, taken[..., None].expand(B, capacity, D)), F.silu)
    back = y.gather(1, seat_BT.clamp(max=capacity - 1)[..., None].expand(B, T, D))
    return torch.where(served_BT[..., None], back, 0.0), asks_BT & ~served_BT
