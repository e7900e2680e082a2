"""What fine-tuning stages share: reading and holding out chat data, the stage, samples.

Invariant: a prompt that is held out for validation is never trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from slm_fn.core import files, random
from slm_fn.core.types import Params
from slm_fn.data.batches import chat_batches
from slm_fn.data.io import folders
from slm_fn.pipeline import model_folder, replies
from slm_fn.pipeline.model_folder import Model
from slm_fn.pipeline.training.plan import TrainingPlan
from slm_fn.pipeline.training.stage import Stage
from slm_fn.text.messages import Message
from slm_fn.train import checkpoint

Row = TypeVar("Row")
Example = TypeVar("Example")
Item = TypeVar("Item")

PAD = "<|pad|>"
MAX_DROPPED_SHARE = 0.05
"""More dropped examples than this are an error: they hint at broken data or too short a context."""
RENDER_CHUNK = 1024
"""Conversations rendered at a time, since their ids take much memory as lists of integers."""
SAMPLE_PROMPTS = ("Hello", "What is your name?", "Tell me a joke")
SAMPLE_TOKENS = 48


class FineTuneBatchAt(Protocol):
    """Returns this process's rows of the batch at a position."""

    def __call__(
        self, seed: int, batch_size: int, position: int, rank: int, world_size: int
    ) -> Any: ...


def load_rows(
    read: Callable[[Sequence[Path]], Iterable[Row]],
    data: Sequence[Path],
    val: Sequence[Path],
    val_fraction: float,
    prompt_of: Callable[[Row], Sequence[Message]],
) -> tuple[list[Row], list[Row]]:
    """Returns the rows to train on and those to validate on.

    Args:
        read: a reader of chat files (`records.read_chat`, `records.read_pairs`).
        data: files or folders to train on.
        val: files or folders to validate on; if empty, `val_fraction` of the prompts of `data` are
            held out.
        val_fraction: share of the prompts to hold out; 0 holds out none.
        prompt_of: returns the messages that hold a row's prompt.
    """
    rows = list(read(data))
    if val:
        return rows, list(read(val))
    if val_fraction:
        return split_by_prompt(rows, val_fraction, prompt_of)
    return rows, []


def split_by_prompt(
    rows: Sequence[Row], val_fraction: float, prompt_of: Callable[[Row], Sequence[Message]]
) -> tuple[list[Row], list[Row]]:
    """Splits rows by a hash of the normalised first user message, their prompt.

    Args:
        rows: what to split.
        val_fraction: share of the prompts to hold out.
        prompt_of: returns the messages that hold a row's prompt.

    Returns:
        The rows to train on, and those of held-out prompts.
    """

    def is_held_out(row: Row) -> bool:
        user_messages = (m.content for m in prompt_of(row) if m.role == "user")
        prompt = " ".join(next(user_messages, "").casefold().split())
        return random.fold_in(0, prompt) % 10_000 < val_fraction * 10_000

    train = [row for row in rows if not is_held_out(row)]
    held_out = [row for row in rows if is_held_out(row)]
    return train, held_out


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yields the items in order, at most `size` at a time.

    Example:
        >>> list(chunks([1, 2, 3, 4, 5], 2))
        [[1, 2], [3, 4], [5]]
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]


def max_ids(model: Model) -> int:
    """Returns how many ids a row may have: the context rounded down to the padding, and one."""
    multiple = chat_batches.MULTIPLE
    return model.config.context // multiple * multiple + 1


def check_dropped(
    kept: list[Example], dropped: Mapping[str, int], total: int, note: Callable[[str], None]
) -> list[Example]:
    """Reports how many examples were dropped and why, and returns those that are kept.

    Args:
        kept: the examples that are left.
        dropped: how many were dropped for each reason.
        total: how many there were.
        note: receives the report, if any were dropped.

    Raises:
        ValueError: none are left, or more than 5 % were dropped.
    """
    num_dropped = sum(dropped.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    if not kept or num_dropped > MAX_DROPPED_SHARE * total:
        raise ValueError(
            f"{num_dropped} of {total} examples have nothing to learn ({reasons or 'no data'}); "
            "raise model.context or clean the data"
        )
    if num_dropped:
        note(f"{num_dropped} of {total} examples dropped: {reasons}")
    return kept


def hash_inputs(init: Path, data: Iterable[Path]) -> str:
    """Returns a hash of the starting weights and the data files, the same for a resumed run."""
    hashed = hashlib.sha256()
    hashed.update(files.checksum(init / checkpoint.WEIGHTS).encode())
    for path in data:
        for file in folders.list_files(path):
            hashed.update(files.checksum(file).encode())
    return hashed.hexdigest()


def make_stage(
    name: str,
    model: Model,
    plan: TrainingPlan,
    batch_at: FineTuneBatchAt,
    evaluate: Callable[[Params], dict[str, float]],
    data_hash: str,
) -> Stage:
    """Returns a fine-tuning stage that starts from `model`.

    Args:
        name: the stage, and its section of the config.
        model: where training starts.
        plan: how to train, with the objective of the stage.
        batch_at: the batches of the stage.
        evaluate: returns validation metrics of parameters.
        data_hash: what `hash_inputs` returns.
    """
    seed, batch_size = plan.settings.seed, plan.settings.batch_size
    rank, world_size = plan.dist.rank, plan.dist.world_size

    def own_batch_at(position: int) -> Any:
        return batch_at(seed, batch_size, position, rank, world_size)

    return Stage(
        name=name,
        plan=plan,
        init_params=lambda: model.params,
        batch_at=own_batch_at,
        evaluate=evaluate,
        sample=make_sampler(model),
        model_files=model_folder.metadata_files(model.config, model.tokenizer, model.generation),
        data_hash=data_hash,
    )


def make_sampler(model: Model) -> Callable[[Params], list[dict[str, str]]]:
    """Returns a function of parameters to replies to a few fixed prompts with fixed seeds."""

    def sample(params: Params) -> list[dict[str, str]]:
        texts = replies.reply_texts(model._replace(params=params), SAMPLE_PROMPTS, SAMPLE_TOKENS)
        return [
            {"prompt": prompt, "text": text}
            for prompt, text in zip(SAMPLE_PROMPTS, texts, strict=True)
        ]

    return sample
