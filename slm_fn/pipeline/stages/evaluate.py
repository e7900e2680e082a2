"""Stage: evaluate a model: bits per byte of complete texts, and how its replies end and differ.

Invariant: evaluated in float32 on complete held-out texts; every token is counted exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import msgspec

from slm_fn.data.io.documents import Document
from slm_fn.evaluate.perplexity import bits_per_byte, likelihood
from slm_fn.lift import quant
from slm_fn.pipeline.model_folder import Model
from slm_fn.pipeline.replies import reply_ids

SEED_STRIDE = 100_003
"""Distance between the seeds of a prompt's first and second round of replies."""


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


def texts(
    model: Model, documents: Iterable[Document], tick: Callable[[str], None] = lambda name: None
) -> TextReport:
    """Bits per byte of complete documents, each after the start token, in half-overlapping windows.

    Args:
        tick: called with the name of each evaluated document.

    Raises:
        ValueError: no document holds any text.
    """
    start = model.tokenizer.special_id(model.generation.template.bos)
    # Dequantised, so that all models run the same matrix products on long texts.
    params = quant.dequantize(model.params, model.params["norm"].dtype)
    context = model.config.context
    nats = 0.0
    num_tokens = 0
    num_bytes = 0
    num_documents = 0
    for document in documents:
        ids = [start, *model.tokenizer.encode(document.text)]
        result = likelihood(model.apply, params, ids, context)
        nats += result.nats
        num_tokens += result.tokens
        num_bytes += len(document.text.encode())
        num_documents += 1
        tick(document.name)
    if not num_tokens:
        raise ValueError("nothing to evaluate: no document holds any text")
    loss = nats / num_tokens
    return TextReport(
        documents=num_documents,
        tokens=num_tokens,
        num_bytes=num_bytes,
        loss_nats=loss,
        perplexity=math.exp(loss),
        bits_per_byte=bits_per_byte(nats, num_bytes),
    )


def replies(
    model: Model, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int = 64
) -> ReplyReport:
    """Reply to every prompt once per seed, with the model's sampling defaults.

    Args:
        prompts: user messages.
        seeds: one round of replies each.
        max_tokens: of each reply.
    """
    all_ids: list[list[int]] = []
    for seed in seeds:
        row_seeds = [seed * SEED_STRIDE + row for row in range(len(prompts))]
        all_ids += reply_ids(model, prompts, max_tokens, row_seeds)
    end = model.tokenizer.special_id(model.generation.template.end)
    decoded = [model.tokenizer.decode(ids).strip() for ids in all_ids]
    num_ended = sum(bool(ids) and ids[-1] == end for ids in all_ids)
    num_empty = sum(not text for text in decoded)
    total = max(1, len(all_ids))
    return ReplyReport(
        replies=len(all_ids),
        ended=num_ended / total,
        empty=num_empty / total,
        distinct=len(set(decoded)) / total,
    )
