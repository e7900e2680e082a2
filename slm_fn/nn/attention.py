"""Causal grouped-query attention: one function over the attention backends, and the mask they share.

Invariant: a query sees the keys of its segment at its own place and before, whatever else lies in the row.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from slm_fn.core import device

Backend = Literal["auto", "plain", "fused"]


def causal_mask(
    positions_BT: Int[Tensor, "#B T"], num_keys: int, since_BT: Int[Tensor, "B T"] | None = None
) -> Bool[Tensor, "#B T S"]:
    """True where a query at `positions_BT` may look: keys lie at places 0, 1, ..., num_keys - 1.

    Args:
        since_BT: the first place each query may look at, where its segment begins; None is the row's beginning.
    """
    keys = torch.arange(num_keys, device=positions_BT.device)
    seen = keys <= positions_BT[..., None]
    return seen if since_BT is None else seen & (keys >= since_BT[..., None])


def segment_starts(segments_BT: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """Where the segment of each place begins; a segment is a run of one number.

    Example:
        >>> segment_starts(torch.tensor([[7, 7, 8, 8, 8, 7]]))
        tensor([[0, 0, 2, 2, 2, 5]])
    """
    begins = F.pad(segments_BT[:, 1:] != segments_BT[:, :-1], (1, 0), value=True)
    places = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    return torch.where(begins, places, 0).cummax(-1).values


def attend(
    q_BTHC: Float[Tensor, "B T H C"],
    k_BSKC: Float[Tensor, "B S K C"],
    v_BSKC: Float[Tensor, "B S K C"],
    mask_BTS: Bool[Tensor, "#B T S"],
    backend: Backend = "auto",
) -> Float[Tensor, "B T H C"]:
    """Softmax attention; query head h reads kv head `h * K // H` (MHA: K = H, MQA: K = 1).

    Args:
        backend: `plain` is matmul and softmax: it allows forward-mode AD and sharded tensors, and beats the
            CPU's fused kernel at short lengths. `fused` is SDPA. `auto` takes the faster where the tensors live.

    References: arXiv 1706.03762, 2305.13245.
    """
    fused = device.prefers_fused_attention(q_BTHC) if backend == "auto" else backend == "fused"
    return (_fused if fused else _plain)(q_BTHC, k_BSKC, v_BSKC, mask_BTS)


def _plain(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, mask_BTS: Tensor) -> Tensor:
    # Heads that share keys are rows of one product: (B K) matrices of (G T) queries, no key is repeated.
    num_kv, T = k_BSKC.shape[2], q_BTHC.shape[1]
    q = rearrange(q_BTHC * q_BTHC.shape[-1] ** -0.5, "B T (K G) C -> B K (G T) C", K=num_kv)
    k = rearrange(k_BSKC, "B S K C -> B K C S")
    v = rearrange(v_BSKC, "B S K C -> B K S C")
    scores = rearrange(q @ k, "B K (G T) S -> B K G T S", T=T)
    bias = torch.zeros_like(mask_BTS, dtype=scores.dtype).masked_fill(~mask_BTS, float("-inf"))
    weights = rearrange((scores + bias[:, None, None]).softmax(-1), "B K G T S -> B K (G T) S")
    return rearrange(weights @ v, "B K (G T) C -> B T (K G) C", T=T)


def _fused(q_BTHC: Tensor, k_BSKC: Tensor, v_BSKC: Tensor, mask_BTS: Tensor) -> Tensor:
    q, k, v = (rearrange(x, "B T H C -> B H T C") for x in (q_BTHC, k_BSKC, v_BSKC))
    if device.wants_contiguous(q):
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    grouped = q.shape[1] != k.shape[1]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BTS[:, None], enable_gqa=grouped)
    return rearrange(y, "B H T C -> B T H C")
