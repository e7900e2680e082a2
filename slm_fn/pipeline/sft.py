"""Stage: conversations to a model that answers; the loss counts what the assistant says and its end.

Invariant: conversations are encoded by the template the model is served with, id for id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.core import files, random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.core.types import Apply, Params
from slm_fn.data import pairs, sources
from slm_fn.data.pairs import ChatExample
from slm_fn.evaluate.perplexity import batch_likelihood
from slm_fn.infer import decode
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim import recipes
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Model
from slm_fn.pipeline.run import Outcome, Stage, train
from slm_fn.text import chat
from slm_fn.text.chat import Message
from slm_fn.train import checkpoint
from slm_fn.train.step import init_state, step_with

MOST_DROPPED = 0.05
SAMPLE_PROMPTS = ("Hello", "What is your name?", "Tell me a joke")


def sft(
    config: Config,
    init: Path | str,
    data: Sequence[Path],
    out: Path | str,
    val: Sequence[Path] = (),
    device: str = "auto",
    resume: str = "auto",
    live: bool | None = None,
    note: Callable[[str], None] = print,
) -> Outcome:
    """Fine-tune a model on chat JSONL. Validation rows come from `val`, else from `val_fraction` split by prompt.

    Raises:
        ValueError: a bad line (names it), or more than 5 % of the conversations have nothing to learn in the context.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    model = models.load(init, "cpu", dtype=torch.float32)
    conversations = list(sources.read_chat(data, check_messages))
    held_out = list(sources.read_chat(val, check_messages)) if val else []
    if not val and config.sft.val_fraction:
        conversations, held_out = split(conversations, config.sft.val_fraction, lambda row: row.messages)
    examples = prepare(model, conversations, note)
    settings, place = config.sft.train, devices.resolve(device)
    dtype = devices.dtype_of(settings.precision, place)
    apply = devices.compute_in(dtype)(model.apply)
    tx = recipes.make(config.sft.optim, settings.total_steps, gpt.matrices(model.config).__contains__, dtype)
    stage = Stage(
        name="sft",
        state=init_state(tree.to_device(model.params, place), tx),
        step=pipe(next_token, value_and_grad, accumulate(settings.accumulate), step_with(tx))(apply),
        batch_at=lambda position: pairs.chat_batch(
            examples, settings.seed, position, settings.batch_size, model.tokenizer.special("<|pad|>")
        ),
        evaluate=evaluator(model, apply, prepare(model, held_out, note) if held_out else [], settings.batch_size),
        sample=sampler(model),
        model_files=models.describe(model.config, model.tokenizer, model.generation),
        data_hash=digest(models.locate(init), [*data, *val]),
    )
    return train(stage, config, settings, out, resume, live)


def digest(init: Path, data: Iterable[Path]) -> str:
    """A hash of the starting weights and the data files: what a resumed run must find again."""
    hashed = hashlib.sha256()
    for file in [init / checkpoint.WEIGHTS, *(file for path in data for file in sources.files_of(path))]:
        hashed.update(files.checksum(file).encode())
    return hashed.hexdigest()


def messages_of(rows: Iterable[Any]) -> list[Message]:
    """The data room's rows as the template's messages."""
    return [Message(row.role, row.content) for row in rows]


def check_messages(rows: Sequence[Any]) -> None:
    """Refuse what the template cannot render; the reader adds file and line.

    Raises:
        ValueError: roles that do not take turns.
    """
    chat.check(messages_of(rows))


def longest(model: Model) -> int:
    """Ids a training row may have: the context and one target more, in whole steps of the padding."""
    return model.config.context // pairs.MULTIPLE * pairs.MULTIPLE + 1


def prepare(model: Model, conversations: Sequence[Any], note: Callable[[str], None]) -> list[ChatExample]:
    """Conversations as ids and masks that fit the context; says what was dropped.

    Raises:
        ValueError: none are left, or more than 5 % had nothing to learn.
    """
    rendered = (
        chat.render(model.generation.template, model.tokenizer, messages_of(row.messages)) for row in conversations
    )
    kept, dropped = pairs.fit([ChatExample(*row) for row in rendered], longest(model))
    return check_dropped(kept, dropped, len(conversations), note)


def check_dropped(kept: list[Any], dropped: dict[str, int], total: int, note: Callable[[str], None]) -> list[Any]:
    """Say how many examples were dropped and why; too many are an error, not a smaller data set."""
    lost = sum(dropped.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    if not kept or lost > MOST_DROPPED * total:
        raise ValueError(
            f"{lost} of {total} examples have nothing to learn ({reasons or 'no data'}); "
            "raise model.context or clean the data"
        )
    if lost:
        note(f"{lost} of {total} examples dropped: {reasons}")
    return kept


def split(
    rows: Sequence[Any], fraction: float, prompt_of: Callable[[Any], Sequence[Any]]
) -> tuple[list[Any], list[Any]]:
    """Split by a hash of the normalised first user message, so that no held-out prompt is trained on."""

    def held(row: Any) -> bool:
        first = next((m.content for m in prompt_of(row) if m.role == "user"), "")
        return random.fold_in(0, " ".join(first.casefold().split())) % 10_000 < fraction * 10_000

    return [row for row in rows if not held(row)], [row for row in rows if held(row)]


def evaluator(
    model: Model, apply: Apply, examples: list[ChatExample], rows: int
) -> Callable[[Params], dict[str, float]]:
    """Loss on held-out conversations; nothing when there are none."""
    pad = model.tokenizer.special("<|pad|>")
    if not examples:
        return lambda params: {}

    def evaluate(params: Params) -> dict[str, float]:
        place = params["norm"].device
        parts = (examples[i : i + rows] for i in range(0, len(examples), rows))
        batches = (tree.to_device(pairs.collate(part, pad), place) for part in parts)
        return {"val_loss": batch_likelihood(apply, params, batches).loss_nats}

    return evaluate


def sampler(model: Model) -> Callable[[Params], list[dict[str, str]]]:
    """Replies to a few fixed prompts with fixed seeds."""

    def sample(params: Params) -> list[dict[str, str]]:
        return [
            {"prompt": prompt, "text": text}
            for prompt, text in zip(
                SAMPLE_PROMPTS, reply(model._replace(params=params), SAMPLE_PROMPTS, 48), strict=True
            )
        ]

    return sample


def reply(model: Model, prompts: Sequence[str], max_tokens: int, seeds: Sequence[int] | None = None) -> list[str]:
    """One reply per prompt, all rows decoded together with the model's sampling defaults."""
    ids = reply_ids(model, prompts, max_tokens, seeds)
    return [model.tokenizer.decode(row) for row in ids]


def reply_ids(
    model: Model, prompts: Sequence[str], max_tokens: int, seeds: Sequence[int] | None = None
) -> list[list[int]]:
    """The same as ids, with the control token that ended a reply as its last id."""
    template = model.generation.template
    rows = [chat.render(template, model.tokenizer, [Message("user", text)], reply=True).ids for text in prompts]
    return decode.generate_batch(
        model.apply,
        model.init_cache,
        model.params,
        rows,
        config=model.generation.sampling,
        seeds=list(seeds) if seeds is not None else list(range(len(rows))),
        max_tokens=max_tokens,
        stop_ids=model.stop_ids,
        size=model.config.context,
    )


def with_sampling(model: Model, **changes: Any) -> Model:
    """The model with other sampling defaults."""
    sampling = msgspec.structs.replace(model.generation.sampling, **changes)
    return model._replace(generation=msgspec.structs.replace(model.generation, sampling=sampling))
