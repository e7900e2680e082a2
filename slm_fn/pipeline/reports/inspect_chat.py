"""Inspect conversations and preference pairs: lengths, and which tokens are trained.

Invariant: the tokens and masks are those of training: `chat_template.render_batch` makes both.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from slm_fn.data.batches import chat_batches
from slm_fn.data.batches.chat_batches import ChatExample
from slm_fn.data.chat import records
from slm_fn.pipeline.reports import text_plots
from slm_fn.pipeline.reports.data_report import DataReport, JsonObject
from slm_fn.pipeline.reports.histogram import LengthHistogram, make_histogram
from slm_fn.pipeline.reports.text_plots import Panel
from slm_fn.pipeline.tokenizer_source import TokenizerSource
from slm_fn.text import chat_template
from slm_fn.text.messages import Message
from slm_fn.text.tokenizer import Tokenizer

ChatKind = Literal["chat", "pairs"]
BATCH_SIZE = 512
"""Records that are rendered in one call."""
CONVERSATION_NAMES = {"chat": ("conversation",), "pairs": ("chosen", "rejected")}
"""The conversations of one record."""


def inspect(
    kind: ChatKind,
    path: Path,
    num_samples: int,
    source: TokenizerSource,
) -> DataReport:
    """Inspects conversations or preference pairs.

    Args:
        kind: "chat", or "pairs" with two conversations a record: the chosen and the rejected one.
        path: a file or a folder.
        num_samples: records to include, token by token, with whether the loss counts the token.
        source: the tokenizer, and its chat template if it has one.

    Raises:
        ValueError: a record is not a valid conversation.
    """
    examples = _render_records(kind, path, source)
    figures: JsonObject = {}
    lengths: dict[str, LengthHistogram] = {}
    panels: list[Panel] = []
    for name, conversations in examples.items():
        for key, value in chat_batches.measure(conversations)._asdict().items():
            figures[f"{name}: {key}"] = value
        num_tokens = [len(example.ids) for example in conversations]
        lengths[name] = make_histogram(num_tokens)
        items = "conversations" if kind == "chat" else f"{name} answers"
        panels.append(text_plots.length_panel(num_tokens, items, "tokens"))
    first_name = next(iter(examples))
    shares = [_trained_share(example) for example in examples[first_name]]
    items = "conversations" if kind == "chat" else first_name
    panels.append(text_plots.share_panel(shares, items, "tokens that are trained"))
    samples: list[JsonObject] = []
    for record in islice(zip(*examples.values(), strict=True), num_samples):
        for name, example in zip(examples, record, strict=True):
            samples.append(_token_sample(source.tokenizer, name, example))
    return DataReport(
        kind=kind,
        figures=figures,
        samples=samples,
        lengths=lengths,
        panels=panels,
    )


def _render_records(
    kind: ChatKind,
    path: Path,
    source: TokenizerSource,
) -> dict[str, list[ChatExample]]:
    """Returns the token ids and masks of all conversations, by their name within a record."""
    template = source.template or chat_template.ChatTemplate()
    names = CONVERSATION_NAMES[kind]
    examples: dict[str, list[ChatExample]] = {name: [] for name in names}
    conversations = _read_conversations(kind, path)
    while batch := list(islice(conversations, BATCH_SIZE)):
        for i, name in enumerate(names):
            column = [record[i] for record in batch]
            rendered = chat_template.render_batch(template, source.tokenizer, column)
            examples[name] += [chat_batches.compact(ChatExample(*row)) for row in rendered]
    return examples


def _read_conversations(kind: ChatKind, path: Path) -> Iterator[tuple[Sequence[Message], ...]]:
    """Yields the conversations of each record: one, or prompt + chosen and prompt + rejected."""
    if kind == "chat":
        for chat in records.read_chat([path], chat_template.check_messages):
            yield (chat.messages,)
        return
    for pair in records.read_pairs([path], chat_template.check_messages):
        yield (*pair.prompt, *pair.chosen), (*pair.prompt, *pair.rejected)


def _trained_share(example: ChatExample) -> float:
    """Returns the share of tokens that the loss counts, without the first.

    It is never predicted.
    """
    return sum(example.mask[1:]) / max(1, len(example.ids) - 1)


def _token_sample(
    tokenizer: Tokenizer,
    name: str,
    example: ChatExample,
) -> JsonObject:
    special_names = {i: special for special, i in tokenizer.special_tokens.items()}
    tokens = []
    for i, is_trained in zip(example.ids, example.mask, strict=True):
        text = special_names.get(i) or tokenizer.token_bytes(i).decode(errors="replace")
        tokens.append({"text": text, "trained": bool(is_trained)})
    return {"name": name, "tokens": tokens, "trained": sum(example.mask)}
