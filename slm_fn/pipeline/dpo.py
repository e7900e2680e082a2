"""Stage: preferred and rejected replies to a model that prefers; the reference's log-probabilities are computed once.

Invariant: only one model is in memory while training; the reference is two numbers per pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from slm_fn.config import Config
from slm_fn.core import tree
from slm_fn.core.types import Apply, Params
from slm_fn.data import pairs, sources
from slm_fn.data.pairs import ChatExample, PairExample
from slm_fn.evaluate.preference import Preference, preference
from slm_fn.loss.lm import sequence_logprob
from slm_fn.loss.preference import dpo as dpo_loss
from slm_fn.loss.preference import recorded
from slm_fn.pipeline import model as models
from slm_fn.pipeline import sft
from slm_fn.pipeline.model import Model
from slm_fn.pipeline.ranks import joined
from slm_fn.pipeline.run import Outcome, train
from slm_fn.pipeline.step import plan
from slm_fn.text import chat

ROWS = 32
"""Pairs per batch where nothing is trained."""


def dpo(
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
    """Train a model on preference JSONL against itself as it was. Validation as in `sft`.

    Raises:
        ValueError: a bad line (names it), or more than 5 % of the pairs have nothing to learn in the context.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    with joined(device) as here:
        model = models.load_to_train(init, here.device)
        told = here.telling(note)
        read = partial(sources.read_pairs, check=sft.check_messages)
        rows, held_out = sft.gather(read, data, val, config.dpo.val_fraction, lambda row: row.prompt)
        settings = config.dpo.train
        examples = prepare(model, thin(rows, settings.total_steps * settings.batch_size), told)
        trials = prepare(model, held_out, told) if held_out else []
        sides = [side for pair in examples for side in (pair.chosen, pair.rejected)]
        told(pairs.told(pairs.report(sides, settings.batch_size, settings.seed)))
        objective = dpo_loss(recorded, config.dpo.beta, config.dpo.nll_weight)
        how = plan(model.config, objective, config.dpo.optim, settings, here)
        batch = partial(pairs.batch, pairs.collate_pairs, examples)
        made_of = sft.digest(models.locate(init), [*data, *val])
        stage = sft.stage("dpo", model, how, batch, _evaluator(model, trials), made_of)
        return train(stage, config, settings, out, resume, live)


def thin(rows: Sequence[Any], most: int) -> list[Any]:
    """At most as many pairs as a run reads, evenly from the whole: a reference is not computed for what is never seen.

    Example:
        >>> thin(range(10), 5)
        [0, 2, 4, 6, 8]
    """
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)


def prepare(model: Model, rows: Sequence[Any], note: Callable[[str], None]) -> list[PairExample]:
    """Pairs as ids and masks that fit the context, with the model's own log-probabilities as the reference."""
    kept: list[PairExample] = []
    dropped: Counter[str] = Counter()
    for begin in range(0, len(rows), sft.TOGETHER):
        fitting, lost = pairs.fit(_rendered(model, rows[begin : begin + sft.TOGETHER]), sft.longest(model))
        kept += (PairExample(pairs.compact(pair.chosen), pairs.compact(pair.rejected)) for pair in fitting)
        dropped.update(lost)
    return with_reference(model, sft.check_dropped(kept, dropped, len(rows), note))


def _rendered(model: Model, rows: Sequence[Any]) -> list[PairExample]:
    """Pairs whose masks count the answers alone, not what an assistant said in the prompt."""
    render = partial(chat.render_batch, model.generation.template, model.tokenizer)
    prompts = [sft.messages_of(row.prompt) for row in rows]
    starts = [len(ids) + 1 for ids, _ in render(prompts)]  # one more: the assistant's token opens the answer

    def side(answers: Iterable[Any]) -> list[ChatExample]:
        whole = [[*said, *sft.messages_of(answer)] for said, answer in zip(prompts, answers, strict=True)]
        return [ChatExample(ids, [0] * i + mask[i:]) for i, (ids, mask) in zip(starts, render(whole), strict=True)]

    return list(map(PairExample, side(row.chosen for row in rows), side(row.rejected for row in rows)))


def with_reference(model: Model, examples: Sequence[PairExample]) -> list[PairExample]:
    """The pairs with log-probabilities under `model`, computed once in float32.

    A reply that stands in several pairs is scored once, and rows of like length go together: little padding.
    """
    sides = {_key(side): side for pair in examples for side in (pair.chosen, pair.rejected)}
    ordered = sorted(sides.values(), key=lambda side: len(side.ids))
    place, pad = model.params["norm"].device, model.tokenizer.special("<|pad|>")
    found: dict[tuple[Any, ...], float] = {}
    with torch.no_grad():
        for i in range(0, len(ordered), ROWS):
            part = ordered[i : i + ROWS]
            batch = tree.to_device(pairs.collate(part, pad), place)
            numbers = sequence_logprob(model.apply, model.params, batch).tolist()
            found |= {_key(side): number for side, number in zip(part, numbers, strict=True)}
    return [pair._replace(reference=(found[_key(pair.chosen)], found[_key(pair.rejected)])) for pair in examples]


def _key(side: ChatExample) -> tuple[Any, ...]:
    return tuple(side.ids), tuple(side.mask)


def judge(apply: Apply, params: Params, trials: Sequence[PairExample], pad: int) -> Preference:
    """Preference accuracy on held-out pairs that carry their reference."""
    place = params["norm"].device
    parts = (trials[i : i + ROWS] for i in range(0, len(trials), ROWS))
    return preference(apply, params, (tree.to_device(pairs.collate_pairs(part, pad), place) for part in parts))


def _evaluator(model: Model, trials: list[PairExample]) -> Callable[[Params], dict[str, float]]:
    if not trials:
        return lambda params: {}

    def evaluate(params: Params) -> dict[str, float]:
        found = judge(model.apply, params, trials, model.tokenizer.special("<|pad|>"))
        return {
            "preference_accuracy": found.accuracy,
            "chosen_logp_change": found.chosen_change_nats_per_token,
            "preference_pairs": float(found.pairs),
        }

    return evaluate
