"""Stage: judge a model: bits per byte of whole texts, how its replies end and differ, what it prefers.

Invariant: judged in float32 on whole held-out texts; no token is counted twice and none is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from slm_fn.data.sources import Document
from slm_fn.evaluate.perplexity import bits_per_byte, likelihood
from slm_fn.lift import quant
from slm_fn.pipeline import sft
from slm_fn.pipeline.model import Model


class TextReport(msgspec.Struct, frozen=True):
    """How well texts are predicted."""

    documents: int
    tokens: int
    num_bytes: int
    loss_nats: float
    perplexity: float
    bits_per_byte: float


class ReplyReport(msgspec.Struct, frozen=True):
    """How replies to many prompts end, and how many differ; shares of `replies`."""

    replies: int
    ended: float
    empty: float
    distinct: float


def texts(model: Model, documents: Iterable[Document], tick: Callable[[str], None] = lambda name: None) -> TextReport:
    """Bits per byte over whole documents, each behind the start token, windows half overlapping.

    Raises:
        ValueError: no documents.
    """
    start = model.tokenizer.special(model.generation.template.bos)
    # Quantised weights as the numbers they stand for: of long texts all models see the same products.
    params = quant.dequantize(model.params, model.params["norm"].dtype)
    nats, tokens, num_bytes, count = 0.0, 0, 0, 0
    for document in documents:
        found = likelihood(model.apply, params, [start, *model.tokenizer.encode(document.text)], model.config.context)
        nats, tokens = nats + found.nats, tokens + found.tokens
        num_bytes, count = num_bytes + len(document.text.encode()), count + 1
        tick(document.name)
    if not tokens:
        raise ValueError("nothing to evaluate: no document holds any text")
    loss = nats / tokens
    return TextReport(count, tokens, num_bytes, loss, math.exp(loss), bits_per_byte(nats, num_bytes))


def replies(model: Model, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int = 64) -> ReplyReport:
    """Answer every prompt once per seed with the model's sampling defaults, and count how the replies end."""
    rows = [
        ids
        for seed in seeds
        for ids in sft.reply_ids(model, prompts, max_tokens, [seed * 100_003 + i for i in range(len(prompts))])
    ]
    end = model.tokenizer.special(model.generation.template.end)
    said = [model.tokenizer.decode(ids).strip() for ids in rows]
    total = max(1, len(rows))
    return ReplyReport(
        replies=len(rows),
        ended=sum(bool(ids) and ids[-1] == end for ids in rows) / total,
        empty=sum(not text for text in said) / total,
        distinct=len(set(said)) / total,
    )
