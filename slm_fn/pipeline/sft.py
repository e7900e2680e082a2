"""Stage: conversations to a model that answers; the loss counts what the assistant says and its end.

Invariant: conversations are encoded by the template the model is served with, id for id.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from slm_fn.config import Config
from slm_fn.core import files, random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.types import Apply, Params
from slm_fn.data import pairs, rows, sources
from slm_fn.data.pairs import ChatExample
from slm_fn.evaluate.perplexity import batch_likelihood
from slm_fn.infer import decode
from slm_fn.lift.documents import isolate
from slm_fn.loss.lm import next_token
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Model
from slm_fn.pipeline.ranks import ALONE, Ranks, joined
from slm_fn.pipeline.run import Outcome, Stage, train
from slm_fn.pipeline.step import Plan, plan
from slm_fn.text import chat
from slm_fn.text.chat import Message
from slm_fn.train import checkpoint

MOST_DROPPED = 0.05
TOGETHER = 1024
"""Conversations rendered at a time: their ids are lists of numbers only for so long."""
Row = TypeVar("Row")
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
    with joined(device) as here:
        model = models.load_to_train(init, here.device)
        told = here.telling(note)
        read = partial(sources.read_chat, check=check_messages)
        conversations, held_out = gather(read, data, val, config.sft.val_fraction, lambda row: row.messages)
        examples = prepare(model, conversations, told)
        settings = config.sft.train
        lift: Callable[[Apply], Apply] = pipe()
        told(pairs.told(pairs.report(examples, settings.batch_size, settings.seed)))
        if config.sft.pack_rows:
            examples = rows.pack(examples, longest(model), settings.seed)
            lift = isolate(model.tokenizer.special(model.generation.template.bos))
            told(f"packed: {pairs.told(pairs.report(examples, settings.batch_size, settings.seed))}")
        trials = prepare(model, held_out, told) if held_out else []
        how = plan(model.config, next_token, config.sft.optim, settings, here, lift)
        judge = evaluator(model, how.apply, trials, settings.batch_size, here)
        batch = partial(pairs.batch, pairs.collate, examples)
        begun = stage("sft", model, how, batch, judge, digest(models.locate(init), [*data, *val]))
        return train(begun, config, settings, out, resume, live)


def gather(
    read: Callable[[Sequence[Path]], Iterable[Row]],
    data: Sequence[Path],
    val: Sequence[Path],
    fraction: float,
    prompt_of: Callable[[Row], Sequence[Any]],
) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those held out: the ones of `val`, or a fraction split off by prompt."""
    found = list(read(data))
    if val:
        return found, list(read(val))
    return split(found, fraction, prompt_of) if fraction else (found, [])


def stage(
    name: str,
    model: Model,
    how: Plan,
    batch: Callable[[int, int, int, int, int, int], Any],
    evaluate: Callable[[Params], dict[str, float]],
    data_hash: str,
) -> Stage:
    """A fine-tuning stage: another loss and other batches make it another stage.

    Args:
        batch: from the padding's id, the seed, the rows of a whole batch, the position, this process's number and
            how many there are.
    """
    pad, settings, here = model.tokenizer.special("<|pad|>"), how.settings, how.here
    return Stage(
        name=name,
        begin=lambda: how.begin(model.params),
        step=how.step,
        batch_at=how.batches(lambda at: batch(pad, settings.seed, settings.batch_size, at, here.rank, here.size)),
        evaluate=evaluate,
        sample=sampler(model),
        model_files=models.describe(model.config, model.tokenizer, model.generation),
        data_hash=data_hash,
        here=here,
        told=how.told,
        observe=how.observe,
        hooks=how.hooks,
    )


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
    kept: list[ChatExample] = []
    dropped: Counter[str] = Counter()
    for begin in range(0, len(conversations), TOGETHER):
        part = [messages_of(row.messages) for row in conversations[begin : begin + TOGETHER]]
        rendered = chat.render_batch(model.generation.template, model.tokenizer, part)
        fitting, lost = pairs.fit([ChatExample(*row) for row in rendered], longest(model))
        kept += map(pairs.compact, fitting)
        dropped.update(lost)
    return check_dropped(kept, dropped, len(conversations), note)


def check_dropped(kept: list[Any], dropped: Mapping[str, int], total: int, note: Callable[[str], None]) -> list[Any]:
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
    model: Model, apply: Apply, examples: list[ChatExample], rows: int, here: Ranks = ALONE
) -> Callable[[Params], dict[str, float]]:
    """Loss on held-out conversations; nothing when there are none."""
    pad = model.tokenizer.special("<|pad|>")
    if not examples:
        return lambda params: {}

    def evaluate(params: Params) -> dict[str, float]:
        place = params["norm"].device
        parts = (examples[i : i + rows] for i in range(here.rank * rows, len(examples), here.size * rows))
        batches = (tree.to_device(pairs.collate(part, pad), place) for part in parts)
        nats, tokens = here.sum(*batch_likelihood(apply, params, batches))
        return {"val_loss": nats / max(1, tokens)}

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
