"""Document isolation: rows that hold several documents, read as if each document stood alone.

Invariant: a document's outputs depend on that document alone, whatever else was packed into its
row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from slm_fn.core.types import Apply, Params


def isolate_documents(start: int) -> Callable[[Apply], Apply]:
    """Lifts `apply -> apply`: every `start` token begins a document that attends to itself alone.

    The documents are read from the tokens, so losses, batches and evaluators do not change. The
    tokens before the first `start` of a row, the rest of a document that was cut, form a document
    too.

    Args:
        start: the id of the token at the start of every document.

    Example:
        >>> import torch
        >>> from functools import partial
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=8, dim=16, num_layers=1, ffn_dim=16)
        >>> apply = isolate_documents(0)(partial(gpt.apply, config))
        >>> params = gpt.init(config, key=0)
        >>> alone, _ = apply(params, torch.tensor([[0, 5, 6]]))
        >>> packed, _ = apply(params, torch.tensor([[3, 0, 5, 6, 0, 7]]))
        >>> torch.allclose(packed[:, 1:4], alone, atol=1e-5)
        True

    References: arXiv 2407.21783, section 3.2 (documents do not attend to one another); 2402.13991.
    """

    def lift(apply: Apply) -> Apply:
        def isolated(
            params: Params,
            tokens: Tensor,
            past: Any = None,
            **kwargs: Any,
        ) -> tuple[Any, Any]:
            segments = (tokens == start).cumsum(-1)
            return apply(params, tokens, past, segments=segments, **kwargs)

        return isolated

    return lift
