"""Document isolation: rows that hold several texts, read as if each stood alone.

Invariant: a text's outputs depend on that text alone, whatever else was packed into its row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from slm_fn.core.types import Apply, Params


def isolate(start: int) -> Callable[[Apply], Apply]:
    """Lift `apply -> apply`: every `start` token opens a segment of its own.

    The segments are read off the tokens, so losses, batches and evaluators stay as they are. What stands before the
    first `start` of a row, the rest of a text that was cut, is a segment too.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=8, dim=16, num_layers=1, ffn_dim=16)
        >>> apply, params = isolate(0)(partial(gpt.apply, config)), gpt.init(config, key=0)
        >>> alone, _ = apply(params, torch.tensor([[0, 5, 6]]))
        >>> packed, _ = apply(params, torch.tensor([[3, 0, 5, 6, 0, 7]]))
        >>> torch.allclose(packed[:, 1:4], alone, atol=1e-5)
        True

    References: arXiv 2407.21783, section 3.2 (documents do not attend to one another); 2402.13991.
    """

    def lift(apply: Apply) -> Apply:
        def isolated(params: Params, tokens: Tensor, past: Any = None, **kwargs: Any) -> tuple[Any, Any]:
            return apply(params, tokens, past, segments=(tokens == start).cumsum(-1), **kwargs)

        return isolated

    return lift
