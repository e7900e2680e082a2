"""Causal grouped-query attention: one function over the attention backends, and the mask they share.

Invariant: a query sees the keys of its segment at its own place and before, whatever else lies in the row.
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
    positions_BT: Int[Tensor, "#B T"], num_keys: int, since_BT: Int[Tensor, "B T"] | None = None, window: int = 0
) -> Bool[Tensor, "#B T S"]:
    """True where a query at `positions_BT` may look: keys lie at places 0, 1, ..., num_keys - 1.

    Args:
        since_BT: the first place each query may look at, where its segment begins; None is the row's beginning.
        window: how many places back a query may look, its own included; 0 is all.
    """
    keys = torch.arange(num_keys, device=positions_BT.device)
    seen = keys <= positions_BT[..., None]
    if since_BT is not None:
        seen = seen & (keys >= since_BT[..., None])
    return seen & (keys > positions_BT[..., None] - window) if window else seen


def as_bias(seen_BTS: Bool[Tensor, "#B T S"], dtype: torch.dtype) -> Float[Tensor, "#B 1 T S"]:
    """The mask as what is added to scores: 0 where a query may look, minus infinity elsewhere."""
    return torch.zeros_like(seen_BTS, dtype=dtype).masked_fill(~seen_BTS, float("-inf"))[:, None]


def add_alibi(
    bias_B1TS: Float[Tensor, "#B 1 T S"], positions_BT: Int[Tensor, "#B T"], slopes: Sequence[float]
) -> Float[Tensor, "#B H T S"]:
    """The bias less each head's slope times the distance: scores fall with it, the more so the steeper the head.

    References: arXiv 2108.12409.
    """
    distance_BTS = positions_BT[..., None] - torch.arange(bias_B1TS.shape[-1], device=bias_B1TS.device)
    # Filled on the device: a tensor made of a list is uploaded, which a recorded graph cannot hold.
    slopes_H = torch.stack([torch.full((), slope, device=bias_B1TS.device) for slope in slopes])
    fall = slopes_H[:, None, None] * distance_BTS[:, None]
    return bias_B1TS - fall.to(bias_B1TS.dtype)


def segment_starts(segments_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Where the segment of each place begins; a segment is a run of one number.

    Example:
        >>> segment_starts(torch.tensor([[7, 7, 8, 8, 8, 7]]))
        tensor([[0, 0, 2, 2, 2, 5]])
    """
    begins = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)
    places = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    return torch.where(begins, places, 0).cummax(-1).values


def choose(backend: Backend, x: Tensor, softcap: float = 0.0) -> Literal["plain", "fused"]:
    """`auto` as the backend that is faster where `x` lives and can do what is asked.

    Raises:
        ValueError: `fused` with a soft-cap: SDPA has no place for one between the product and the softmax.
    """
    if backend == "fused" and softcap:
        raise ValueError("attn_softcap needs the plain attention backend; the fused kernel cannot bend its scores")
    if backend == "auto":
        return "fused" if not softcap and device.prefers_fused_attention(x) else "plain"
    return backend


def attend(
    q_BTHC: Float[Tensor, "B T H C"],
    k_BSKC: Float[Tensor, "B S K C"],
    v_BSKC: Float[Tensor, "B S K C"],
    bias_BHTS: Float[Tensor, "#B #H T S"] | None,
    backend: Literal["plain", "fused"] = "plain",
    scale: float | None = None,
    softcap: float = 0.0,
) -> Float[Tensor, "B T H C"]:
    """Softmax attention; query head h reads kv head `h * K // H` (MHA: K = H, MQA: K = 1).

    Args:
        bias_BHTS: added to the scores: what hides keys, and ALiBi. None is plainly causal, for `fused` alone, which
            then takes its fastest kernel.
        backend: `plain` is matmul and softmax: it allows forward-mode AD, sharded tensors and a soft-cap, and beats
            the CPU's fused kernel at lengths of some hundred. `fused` is SDPA: it keeps no scores, and wins on GPUs
            and at long lengths.
        scale: of the scores; None is 1 / sqrt(C).
        softcap: scores are bent to `softcap * tanh(scores / softcap)` before the bias (arXiv 2408.00118); 0 is off.

    References: arXiv 1706.03762, 2305.13245.
    """
    scale = q_BTHC.shape[-1] ** -0.5 if scale is None else scale
    if backend == "fused":
        return _fused(q_BTHC, k_BSKC, v_BSKC, bias_BHTS, scale)
    assert bias_BHTS is not None, "the plain backend hides keys by a bias"
    return _plain(q_BTHC, k_BSKC, v_BSKC, bias_BHTS, scale, softcap)


def _plain(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, bias_BHTS: Tensor, scale: float, softcap: float) -> Tensor:
    # Heads that share keys are rows of one product: (B K) matrices of (G T) queries, no key is repeated.
    num_kv, T = k_BSKC.shape[2], q_BTHC.shape[1]
    q = rearrange(q_BTHC * scale, "B T (K G) C -> B K (G T) C", K=num_kv)
    k = rearrange(k_BSKC, "B S K C -> B K C S")
    v = rearrange(v_BSKC, "B S K C -> B K S C")
    scores = rearrange(q @ k, "B K (G T) S -> B K G T S", T=T)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    bias = bias_BHTS[:, :, None] if bias_BHTS.shape[1] == 1 else bias_BHTS.unflatten(1, (num_kv, -1))
    weights = rearrange((scores + bias).softmax(-1), "B K G T S -> B K (G T) S")
    return rearrange(weights @ v, "B K (G T) C -> B T (K G) C", T=T)


def _fused(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, bias_BHTS: Tensor | None, scale: float) -> Tensor:
    q, k, v = (rearrange(x, "B T H C -> B H T C") for x in (q_BTHC, k_BSKC, v_BSKC))
    if device.wants_contiguous(q):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    grouped, causal = q.shape[1] != k.shape[1], bias_BHTS is None
    if grouped and not causal:
        # Kernels that take a bias know no groups; they would fall back to one that keeps every score.
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias_BHTS, is_causal=causal, scale=scale, enable_gqa=grouped and causal
    )
    return rearrange(y, "B H T C -> B T H C")
