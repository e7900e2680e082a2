"""Feed-forward layers: gelu, relu2, the gated geglu and swiglu, and dual, which routes tokens.

Invariant: the result at a position depends on that position alone; only the capacity of `dual`, in
training, depends on earlier positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from slm_fn.core.types import Params
from slm_fn.nn.config import ModelConfig
from slm_fn.nn.ops import affine, linear

Activation = Callable[[Tensor], Tensor]
Layer = Callable[[Params, Tensor, Activation], Tensor]


def mlp(
    params: Params,
    x: Float[Tensor, "B T D"],
    activation: Activation,
) -> Float[Tensor, "B T D"]:
    """Two-layer perceptron: `down(activation(up(x)))`.

    References: arXiv 1606.08415 (gelu), 2109.08668 (relu squared).
    """
    hidden_BTF = activation(affine(params, "up", x))
    return affine(params, "down", hidden_BTF)


def gated_mlp(
    params: Params,
    x: Float[Tensor, "B T D"],
    activation: Activation,
) -> Float[Tensor, "B T D"]:
    """Gated linear unit: `down(activation(gate(x)) * up(x))`; SwiGLU with silu, GEGLU with gelu.

    References: arXiv 2002.05202.
    """
    gate_BTF = activation(affine(params, "gate", x))
    up_BTF = affine(params, "up", x)
    return affine(params, "down", gate_BTF * up_BTF)


def relu2(x: Tensor) -> Tensor:
    """Returns `max(x, 0)^2`."""
    return F.relu(x).square()


LAYERS: dict[str, tuple[Layer, Activation]] = {
    "swiglu": (gated_mlp, F.silu),
    "geglu": (gated_mlp, F.gelu),
    "gelu": (mlp, F.gelu),
    "relu2": (mlp, relu2),
}


def apply(
    config: ModelConfig,
    params: Params,
    x: Float[Tensor, "B T D"],
    training: bool = False,
    decoding: bool = False,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T 3"] | None]:
    """Applies the feed-forward layer that the config names.

    Args:
        config: names the layer.
        params: of the layer.
        x: normed hidden states.
        training: whether `dual` may drop tokens.
        decoding: whether a token's routing must not depend on the batch's other rows (`dual`).

    Returns:
        The output, and the routing of every token if the layer is `dual` (otherwise None).
    """
    if config.ffn == "dual":
        return dual(config, params, x, training, decoding)
    layer, activation = LAYERS[config.ffn]
    return layer(params, x, activation), None


def dual(
    config: ModelConfig,
    params: Params,
    x: Float[Tensor, "B T D"],
    training: bool = False,
    decoding: bool = False,
) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B T 3"]]:
    """Two SwiGLUs, a small and a large one, with a router that chooses one for each token.

        p = softmax(router(x) / temperature)
        y = max(p) path(x), where path is the one of larger probability

    The factor max(p) gives the router a gradient. In inference, and in training without `drop`,
    both paths are computed for all tokens. In training with `drop`, the expert computes only the
    first tokens of a sequence that are routed to it, up to its capacity, which is a static shape;
    the output of dropped tokens is zero.

    Returns:
        The output, and per token: the expert's probability, whether the expert was chosen, whether
        the token was dropped.

    References: arXiv 2101.03961.
    """
    # In float32 (Switch's selective precision): rounded, a token near the decision boundary could
    # take a different path in decoding than in training.
    logits_BT2 = _router_logits(params["router"], x.float(), decoding)
    gate_BT2 = (logits_BT2 / config.dual.temperature).softmax(-1)
    p_lite_BT = gate_BT2[..., 0]
    p_expert_BT = gate_BT2[..., 1]
    is_expert_BT = p_expert_BT > p_lite_BT
    lite_BTD = gated_mlp(params["lite"], x, F.silu)
    if training and config.dual.drop:
        capacity = config.dual.capacity(x.shape[1])
        expert_BTD, is_dropped_BT = _apply_expert(params["expert"], x, is_expert_BT, capacity)
    else:
        expert_BTD = gated_mlp(params["expert"], x, F.silu)
        is_dropped_BT = torch.zeros_like(is_expert_BT)
    y_BTD = torch.where(is_expert_BT[..., None], expert_BTD, lite_BTD)
    route_BT3 = torch.stack([p_expert_BT, is_expert_BT.float(), is_dropped_BT.float()], dim=-1)
    scale_BT1 = gate_BT2.amax(-1, keepdim=True).to(y_BTD.dtype)
    return y_BTD * scale_BT1, route_BT3


def _router_logits(
    router_2D: Float[Tensor, "2 D"], x: Float[Tensor, "B T D"], decoding: bool
) -> Float[Tensor, "B T 2"]:
    """Returns `linear(router_2D, x)`, computed one output at a time when decoding.

    The kernels of a product with two outputs round a row depending on its index in the batch; the
    sum of a single row does not.
    """
    if not decoding:
        return linear(router_2D, x)
    outputs = [(x * weight_D).sum(-1) for weight_D in router_2D.unbind(0)]
    return torch.stack(outputs, dim=-1)


def _apply_expert(
    params: Params,
    x: Float[Tensor, "B T D"],
    is_expert_BT: Bool[Tensor, "B T"],
    capacity: int,
) -> tuple[Float[Tensor, "B T D"], Bool[Tensor, "B T"]]:
    """Applies the expert to the first `capacity` tokens of each sequence that are routed to it.

    Returns:
        The expert's output, zero for all other tokens, and which tokens were dropped.
    """
    B, T, D = x.shape
    rank_BT = is_expert_BT.cumsum(-1) - 1
    is_computed_BT = is_expert_BT & (rank_BT < capacity)
    # Each computed token has a slot of the expert. All other tokens write their position to one
    # extra slot, which is discarded; unused slots hold position 0.
    slot_BT = torch.where(is_computed_BT, rank_BT, capacity)
    positions_BT = torch.arange(T, device=x.device).expand(B, T)
    empty_slots = torch.zeros_like(slot_BT[:, :1]).expand(B, capacity + 1)
    slot_positions = empty_slots.scatter(1, slot_BT, positions_BT)[:, :capacity]

    inputs = x.gather(1, slot_positions[..., None].expand(B, capacity, D))
    outputs = gated_mlp(params, inputs, F.silu)
    clamped_slot_BT = slot_BT.clamp(max=capacity - 1)
    outputs_BTD = outputs.gather(1, clamped_slot_BT[..., None].expand(B, T, D))
    expert_BTD = torch.where(is_computed_BT[..., None], outputs_BTD, 0.0)
    return expert_BTD, is_expert_BT & ~is_computed_BT
