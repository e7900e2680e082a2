"""Stage: the whole road on the embedded corpus, with a report a person can check.

Invariant: every figure is measured on text, prompts and replies that no stage was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import torch

from slm_fn import config as configs
from slm_fn.config import Config
from slm_fn.core import files
from slm_fn.data import sources
from slm_fn.pipeline import demo_data, dpo, evaluate, model, pack, pretrain, sft, tokenize
from slm_fn.pipeline.run import Outcome

QUICK = (
    "pretrain.train.total_steps=80",
    "sft.train.total_steps=40",
    "dpo.train.total_steps=15",
)
QUESTIONS = ("Hello, how are you?", "What is a computer?", "Tell me a joke")
SEEDS = (0, 1, 2)


class Row(msgspec.Struct, frozen=True):
    """One stage: how long it took and what it reached."""

    stage: str
    seconds: float
    tokens: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    preference_accuracy: float | None = None


class Report(msgspec.Struct, frozen=True):
    """What the demo did; saved as `report.json`."""

    rows: list[Row]
    counts: dict[str, int]
    replies: evaluate.ReplyReport
    preferred_replies: evaluate.ReplyReport
    chosen_change_nats_per_token: float
    preference_pairs: int
    samples: list[tuple[str, str]]
    model: str
    seconds: float


class _Clock:
    """Times stages and collects their rows."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.rows: list[Row] = []
        self.say, self.began = say, time.perf_counter()

    @contextmanager
    def stage(self, name: str, doing: str) -> Iterator[dict[str, Any]]:
        self.say(f"[{len(self.rows) + 1}/6] {name}: {doing}")
        found: dict[str, Any] = {}
        start = time.perf_counter()
        yield found
        self.rows.append(Row(name, round(time.perf_counter() - start, 1), **found))


def demo(
    out: Path | str,
    preset: str = "tiny",
    quick: bool = False,
    overrides: tuple[str, ...] = (),
    device: str = "auto",
    live: bool | None = None,
    say: Callable[[str], None] = print,
) -> Report:
    """Text to chat in one call: prepare, tokenize and pack, pretrain, fine-tune, prefer, judge.

    An interrupted demo goes on where it stopped when it is called again with the same arguments.

    Raises:
        FileNotFoundError: the extra `demo` is not installed, or no such preset.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    out = Path(out)
    config = configs.load(preset, [*(QUICK if quick else ()), *overrides])
    clock = _Clock(say)
    with clock.stage("prepare", "38 plays and the conversations to files"):
        data = demo_data.prepare_demo(out / "data")
    with clock.stage(
        "tokenize", f"a byte-level BPE of {config.tokenizer.vocab_size:,} tokens, and packed shards"
    ) as row:
        row["tokens"] = _tokenize(config, data, out)
    with clock.stage("pretrain", f"{config.pretrain.train.total_steps} steps on 36 plays") as row:
        done = pretrain.pretrain(config, out / "packed", out / "pretrain", device, live=live)
        judged = evaluate.texts(_load(done, device), data.held_out_plays)
        row |= {"tokens": done.progress.tokens, "loss": judged.loss_nats, "bits_per_byte": judged.bits_per_byte}
    with clock.stage("sft", f"{config.sft.train.total_steps} steps on {data.counts['train']} conversations") as row:
        tuned = sft.sft(
            config, done.checkpoint, [data.chat], out / "sft", [data.held_out_chat], device, live=live, note=say
        )
        row |= {"tokens": tuned.progress.tokens, "loss": tuned.metrics.get("val_loss")}
        answers = _judge_replies(_load(tuned, device), data.held_out_chat)
    with clock.stage("dpo", f"{config.dpo.train.total_steps} steps on preferred and rejected replies") as row:
        final = dpo.dpo(
            config, tuned.checkpoint, [data.pairs], out / "dpo", [data.held_out_pairs], device, live=live, note=say
        )
        row |= {"tokens": final.progress.tokens, "preference_accuracy": final.metrics["preference_accuracy"]}
    with clock.stage("judge", "replies to every held-out prompt, three seeds"):
        talker = _load(final, device)
        preferred = _judge_replies(talker, data.held_out_chat)
        samples = list(zip(QUESTIONS, sft.reply(talker, QUESTIONS, 64), strict=True))
    report = Report(
        clock.rows,
        data.counts,
        answers,
        preferred,
        final.metrics["chosen_logp_change"],
        int(final.metrics["preference_pairs"]),
        samples,
        str(out / "dpo"),
        round(time.perf_counter() - clock.began, 1),
    )
    files.write(out / "report.json", msgspec.json.format(msgspec.json.encode(report)))
    return report


def _tokenize(config: Config, data: demo_data.Prepared, out: Path) -> int:
    spoken = [m.content for row in sources.read_chat([data.chat]) for m in row.messages]
    tokenizer = tokenize.train_tokenizer(
        config.tokenizer, [*(d.text for d in data.plays), *spoken], out / "tokenizer.json"
    )
    cut = pack.PackConfig(
        seq_len=config.model.context, val_fraction=0.0, val_names=tuple(d.name for d in data.held_out_plays)
    )
    packed = pack.pack_documents(cut, tokenizer, [*data.plays, *data.held_out_plays], out / "packed")
    return packed.splits["train"].tokens


def _load(done: Outcome, device: str) -> model.Model:
    return model.load(done.checkpoint, device, dtype=torch.float32)


def _judge_replies(talker: model.Model, chat: Path) -> evaluate.ReplyReport:
    """Every held-out prompt, each conversation's first, at temperature 0.8 and three seeds."""
    prompts = [next(m.content for m in row.messages if m.role == "user") for row in sources.read_chat([chat])]
    return evaluate.replies(sft.with_sampling(talker, temperature=0.8), list(dict.fromkeys(prompts)), SEEDS)
