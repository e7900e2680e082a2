"""Stage: preferred and rejected replies to a model that prefers (direct preference optimization).

Invariant: only one model is in memory while training; the reference is two numbers per pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from slm_fn.config import Config
from slm_fn.core import tree
from slm_fn.core.types import Apply, Params
from slm_fn.data.batches import chat_batches
from slm_fn.data.batches.chat_batches import ChatExample, PairExample
from slm_fn.data.chat import records
from slm_fn.evaluate.preference import PreferenceReport, evaluate_preference
from slm_fn.loss.lm import sequence_logprob
from slm_fn.loss.preference import dpo as dpo_loss
from slm_fn.loss.preference import reference_from_batch
from slm_fn.pipeline import model_folder
from slm_fn.pipeline.model_folder import Model
from slm_fn.pipeline.training import finetune
from slm_fn.pipeline.training.distributed import process_group
from slm_fn.pipeline.training.loop import TrainResult, train
from slm_fn.pipeline.training.plan import make_plan
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.text import chat_template
from slm_fn.text.messages import Message

Row = TypeVar("Row")
ExampleKey = tuple[tuple[int, ...], tuple[int, ...]]

EVAL_BATCH_SIZE = 32
"""Pairs per batch where nothing is trained."""


def dpo(
    config: Config,
    init: Path | str,
    data: Sequence[Path],
    out: Path | str,
    val: Sequence[Path] = (),
    options: RunOptions = RunOptions(),
    note: Callable[[str], None] = print,
) -> TrainResult:
    """Trains a model on preference JSONL, with the model it starts from as the reference.

    Args:
        config: its dpo section is read.
        init: the model, run or checkpoint folder to start from.
        data: files or folders of preference pairs to train on.
        out: the run folder.
        val: files or folders to validate on; if empty, `val_fraction` of the prompts are held out.
        options: device, resuming, and how to display progress.
        note: receives lines about the data.

    Raises:
        ValueError: a bad line (names it), or more than 5 % of the pairs have nothing to learn in
            the context.
        Interrupted: stopped by Ctrl+C or SIGTERM; everything is saved.

    References: Rafailov et al. 2023, arXiv 2305.18290.
    """
    settings = config.dpo.train
    with process_group(options.device) as dist:
        model = model_folder.load_for_training(init, dist.device)
        note = dist.on_first(note)
        read_pairs = partial(records.read_pairs, check=chat_template.check_messages)
        train_rows, val_rows = finetune.load_rows(
            read_pairs, data, val, config.dpo.val_fraction, lambda row: row.prompt
        )
        num_pairs_read = settings.total_steps * settings.batch_size
        examples = encode_pairs(model, subsample(train_rows, num_pairs_read), note)
        val_pairs = encode_pairs(model, val_rows, note) if val_rows else []
        sides = list(_sides(examples))
        note(
            chat_batches.summarize(chat_batches.measure(sides, settings.batch_size, settings.seed))
        )
        objective = dpo_loss(reference_from_batch, config.dpo.beta, config.dpo.nll_weight)
        plan = make_plan(model.config, objective, config.dpo.optim, settings, dist)
        pad = model.tokenizer.special_id(finetune.PAD)
        stage = finetune.make_stage(
            "dpo",
            model,
            plan,
            partial(chat_batches.batch, partial(chat_batches.collate_pairs, pad=pad), examples),
            _make_evaluator(model, val_pairs),
            finetune.hash_inputs(model_folder.locate(init), [*data, *val]),
        )
        return train(stage, config, out, options)


def subsample(rows: Sequence[Row], max_rows: int) -> list[Row]:
    """Returns at most `max_rows` rows, evenly spaced.

    So no reference is computed for pairs that a run never reads.

    Example:
        >>> subsample(range(10), 5)
        [0, 2, 4, 6, 8]
    """
    if len(rows) <= max_rows:
        return list(rows)
    return [rows[i * len(rows) // max_rows] for i in range(max_rows)]


def encode_pairs(
    model: Model, rows: Sequence[records.PreferencePair], note: Callable[[str], None]
) -> list[PairExample]:
    """Returns pairs as ids and masks that fit the context, with the model as the reference.

    Args:
        model: whose template, tokenizer and context to use; the reference.
        rows: rows of `records.read_pairs`.
        note: receives a line if any were dropped.

    Raises:
        ValueError: none are left, or more than 5 % had nothing to learn.
    """
    limit = finetune.max_ids(model)
    kept: list[PairExample] = []
    dropped: Counter[str] = Counter()
    for chunk in finetune.chunks(rows, finetune.RENDER_CHUNK):
        fitting, dropped_here = chat_batches.fit_pairs(_render(model, chunk), limit)
        kept += map(_compact, fitting)
        dropped.update(dropped_here)
    return with_reference(model, finetune.check_dropped(kept, dropped, len(rows), note))


def _compact(pair: PairExample) -> PairExample:
    return PairExample(chat_batches.compact(pair.chosen), chat_batches.compact(pair.rejected))


def _render(model: Model, rows: Sequence[records.PreferencePair]) -> list[PairExample]:
    """Pairs whose masks count the answers alone, not the assistant's messages in the prompt."""
    render = partial(chat_template.render_batch, model.generation.template, model.tokenizer)
    prompts = [row.prompt for row in rows]
    # One id more than the prompt: the assistant's role token opens the answer.
    answer_starts = [len(ids) + 1 for ids, _ in render(prompts)]

    def render_side(answers: Iterable[Sequence[Message]]) -> list[ChatExample]:
        conversations = [
            [*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return [
            ChatExample(ids, [0] * start + mask[start:])
            for start, (ids, mask) in zip(answer_starts, render(conversations), strict=True)
        ]

    chosen = render_side(row.chosen for row in rows)
    rejected = render_side(row.rejected for row in rows)
    return [PairExample(*sides) for sides in zip(chosen, rejected, strict=True)]


def with_reference(model: Model, examples: Sequence[PairExample]) -> list[PairExample]:
    """Returns the pairs with their replies' log-probabilities under `model`, in float32.

    A reply that occurs in several pairs is scored once, and rows of like length go together: little
    padding.

    Args:
        model: the reference.
        examples: pairs that fit the context.
    """
    distinct = {_key(side): side for side in _sides(examples)}
    by_length = sorted(distinct.values(), key=_num_ids)
    device = model.params["norm"].device
    pad = model.tokenizer.special_id(finetune.PAD)
    logprobs: dict[ExampleKey, float] = {}
    with torch.no_grad():
        for chunk in finetune.chunks(by_length, EVAL_BATCH_SIZE):
            batch = tree.to_device(chat_batches.collate(chunk, pad), device)
            chunk_logprobs = sequence_logprob(model.apply, model.params, batch).tolist()
            logprobs.update(zip(map(_key, chunk), chunk_logprobs, strict=True))
    with_logprobs = []
    for pair in examples:
        reference = logprobs[_key(pair.chosen)], logprobs[_key(pair.rejected)]
        with_logprobs.append(pair._replace(reference=reference))
    return with_logprobs


def _sides(pairs: Sequence[PairExample]) -> Iterator[ChatExample]:
    for pair in pairs:
        yield pair.chosen
        yield pair.rejected


def _num_ids(side: ChatExample) -> int:
    return len(side.ids)


def _key(side: ChatExample) -> ExampleKey:
    return tuple(side.ids), tuple(side.mask)


def evaluate(
    apply: Apply, params: Params, val_pairs: Sequence[PairExample], pad: int
) -> PreferenceReport:
    """Returns the preference accuracy on held-out pairs that carry their reference.

    Args:
        apply: the model.
        params: its parameters.
        val_pairs: pairs as `encode_pairs` returns them.
        pad: the id to pad rows with.
    """
    device = params["norm"].device
    batches = (
        tree.to_device(chat_batches.collate_pairs(chunk, pad), device)
        for chunk in finetune.chunks(val_pairs, EVAL_BATCH_SIZE)
    )
    return evaluate_preference(apply, params, batches)


def _make_evaluator(
    model: Model, val_pairs: Sequence[PairExample]
) -> Callable[[Params], dict[str, float]]:
    if not val_pairs:
        return lambda params: {}
    pad = model.tokenizer.special_id(finetune.PAD)

    def evaluate_pairs(params: Params) -> dict[str, float]:
        result = evaluate(model.apply, params, val_pairs, pad)
        return {
            "preference_accuracy": result.accuracy,
            "chosen_logp_change": result.chosen_change_nats_per_token,
            "preference_pairs": float(result.num_pairs),
        }

    return evaluate_pairs
