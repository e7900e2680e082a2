"""Feed-forward layers: SwiGLU.

Invariant: one place's result depends on that place alone.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from slm_fn.nn.ops import linear


def swiglu(params: dict[str, Any], x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
    """`down(silu(gate(x)) * up(x))`.

    References: arXiv 2002.05202.
    """
    return linear(params["down"], F.silu(linear(params["gate"], x)) * linear(params["up"], x))
