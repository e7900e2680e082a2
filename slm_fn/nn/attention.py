"""Causal grouped-query attention: two backends behind one function, and the mask for both.

Invariant: a query attends to keys of its own segment at its own position and before, whatever else
the sequence holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from slm_fn.core import device

Backend = Literal["auto", "plain", "fused"]


def causal_mask(
    positions_BT: Int[Tensor, "#B T"],
    num_keys: int,
    segment_starts_BT: Int[Tensor, "B T"] | None = None,
    window: int = 0,
) -> Bool[Tensor, "#B T S"]:
    """Returns True where the query at a position may attend to a key.

    Args:
        positions_BT: position of each query; keys are at positions 0, 1, ..., num_keys - 1.
        num_keys: number of keys S.
        segment_starts_BT: the first position each query may attend to; None is 0.
        window: number of positions a query may attend to, its own included; 0 is all before it.
    """
    key_positions_S = torch.arange(num_keys, device=positions_BT.device)
    mask_BTS = key_positions_S <= positions_BT[..., None]
    if segment_starts_BT is not None:
        mask_BTS = mask_BTS & (key_positions_S >= segment_starts_BT[..., None])
    if window:
        mask_BTS = mask_BTS & (key_positions_S > positions_BT[..., None] - window)
    return mask_BTS


def mask_to_bias(mask_BTS: Bool[Tensor, "#B T S"], dtype: torch.dtype) -> Float[Tensor, "#B 1 T S"]:
    """Returns the mask as a bias for attention scores: 0 where True, minus infinity elsewhere."""
    zeros_BTS = torch.zeros_like(mask_BTS, dtype=dtype)
    bias_BTS = zeros_BTS.masked_fill(~mask_BTS, float("-inf"))
    return bias_BTS[:, None]


def add_alibi(
    bias_B1TS: Float[Tensor, "#B 1 T S"],
    positions_BT: Int[Tensor, "#B T"],
    slopes: Sequence[float],
) -> Float[Tensor, "#B H T S"]:
    """Subtracts from the bias each head's slope times the distance from query to key (ALiBi).

    References: arXiv 2108.12409.
    """
    key_positions_S = torch.arange(bias_B1TS.shape[-1], device=bias_B1TS.device)
    distance_BTS = positions_BT[..., None] - key_positions_S
    # Filled on the device: a tensor made from a list is copied there, which a CUDA graph cannot do.
    slopes_H = torch.stack([torch.full((), slope, device=bias_B1TS.device) for slope in slopes])
    penalty_BHTS = slopes_H[:, None, None] * distance_BTS[:, None]
    return bias_B1TS - penalty_BHTS.to(bias_B1TS.dtype)


def segment_starts(segments_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Returns, for every position, where its segment begins; a segment is a run of equal ids.

    Example:
        >>> segment_starts(torch.tensor([[7, 7, 8, 8, 8, 7]]))
        tensor([[0, 0, 2, 2, 2, 5]])
    """
    is_new_BT = segments_BT[:, 1:] != segments_BT[:, :-1]
    is_start_BT = F.pad(is_new_BT, (1, 0), value=True)
    positions_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    return torch.where(is_start_BT, positions_T, 0).cummax(-1).values


def resolve_backend(
    backend: Backend,
    x: Tensor,
    softcap: float = 0.0,
) -> Literal["plain", "fused"]:
    """Replaces `auto` by the faster backend for the device of `x` that supports a soft-cap if set.

    Args:
        backend: the requested backend.
        x: a tensor on the device where attention runs.
        softcap: of the attention scores; 0 is none.

    Raises:
        ValueError: `fused` with a soft-cap, which SDPA cannot apply between product and softmax.
    """
    if backend == "fused" and softcap:
        raise ValueError(
            "attn_softcap needs the plain attention backend;"
            " the fused kernel cannot cap its attention scores"
        )
    if backend != "auto":
        return backend
    if not softcap and device.prefers_fused_attention(x):
        return "fused"
    return "plain"


def attend(
    q_BTHC: Float[Tensor, "B T H C"],
    k_BSKC: Float[Tensor, "B S K C"],
    v_BSKC: Float[Tensor, "B S K C"],
    bias_BHTS: Float[Tensor, "#B #H T S"] | None,
    backend: Literal["plain", "fused"] = "plain",
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Tensor, "B T H C"]:
    """Scaled dot-product attention: softmax(scale q k' + bias) v.

    Query head h reads kv head `h * K // H`: multi-head for K = H, multi-query for K = 1.

    Args:
        q_BTHC: queries.
        k_BSKC: keys.
        v_BSKC: values.
        bias_BHTS: added to the scores: the mask and ALiBi. None is a causal mask over all keys, for
            `fused` alone, which then uses its fastest kernel.
        backend: `plain` is matmul and softmax. It supports forward-mode AD, sharded tensors and a
            soft-cap, and is faster than the CPU's fused kernel up to some hundred tokens. `fused`
            is SDPA. It stores no scores, and is faster on GPUs and for long sequences.
        scale: of the scores; None is 1 / sqrt(C).
        softcap: scores become `softcap * tanh(scores / softcap)` before the bias is added (arXiv
            2408.00118); 0 is off.

    References: arXiv 1706.03762, 2305.13245 (grouped queries).
    """
    if scale is None:
        scale = q_BTHC.shape[-1] ** -0.5
    if backend == "fused":
        return _attend_fused(q_BTHC, k_BSKC, v_BSKC, bias_BHTS, scale)
    assert bias_BHTS is not None, "the plain attention backend needs the mask as a bias"
    return _attend_plain(q_BTHC, k_BSKC, v_BSKC, bias_BHTS, scale, softcap)


def _attend_plain(
    q_BTHC: Tensor,
    k_BSKC: Tensor,
    v_BSKC: Tensor,
    bias_BHTS: Tensor,
    scale: float,
    softcap: float,
) -> Tensor:
    # X = G T: the G query heads of one kv head are rows of one product, so no key is repeated.
    num_kv_heads = k_BSKC.shape[2]
    T = q_BTHC.shape[1]
    q_BKXC = rearrange(q_BTHC * scale, "B T (K G) C -> B K (G T) C", K=num_kv_heads)
    k_BKCS = rearrange(k_BSKC, "B S K C -> B K C S")
    v_BKSC = rearrange(v_BSKC, "B S K C -> B K S C")
    scores_BKGTS = rearrange(q_BKXC @ k_BKCS, "B K (G T) S -> B K G T S", T=T)
    if softcap:
        scores_BKGTS = softcap * torch.tanh(scores_BKGTS / softcap)
    if bias_BHTS.shape[1] == 1:
        bias_BKGTS = bias_BHTS[:, :, None]
    else:
        bias_BKGTS = rearrange(bias_BHTS, "B (K G) T S -> B K G T S", K=num_kv_heads)
    weights_BKGTS = (scores_BKGTS + bias_BKGTS).softmax(-1)
    weights_BKXS = rearrange(weights_BKGTS, "B K G T S -> B K (G T) S")
    return rearrange(weights_BKXS @ v_BKSC, "B K (G T) C -> B T (K G) C", T=T)


def _attend_fused(
    q_BTHC: Tensor,
    k_BSKC: Tensor,
    v_BSKC: Tensor,
    bias_BHTS: Tensor | None,
    scale: float,
) -> Tensor:
    q_BHTC = rearrange(q_BTHC, "B T H C -> B H T C")
    k_BKSC = rearrange(k_BSKC, "B S K C -> B K S C")
    v_BKSC = rearrange(v_BSKC, "B S K C -> B K S C")
    if device.needs_contiguous_attention(q_BHTC):
        q_BHTC = q_BHTC.contiguous()
        k_BKSC = k_BKSC.contiguous()
        v_BKSC = v_BKSC.contiguous()
    is_causal = bias_BHTS is None
    is_grouped = q_BHTC.shape[1] != k_BKSC.shape[1]
    if is_grouped and not is_causal:
        # Kernels with a bias do not support grouped queries; SDPA would fall back to a kernel that
        # stores all scores.
        group_size = q_BHTC.shape[1] // k_BKSC.shape[1]
        k_BKSC = k_BKSC.repeat_interleave(group_size, 1)
        v_BKSC = v_BKSC.repeat_interleave(group_size, 1)
    out_BHTC = F.scaled_dot_product_attention(
        q_BHTC,
        k_BKSC,
        v_BKSC,
        attn_mask=bias_BHTS,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=is_grouped and is_causal,
    )
    return rearrange(out_BHTC, "B H T C -> B T H C")
