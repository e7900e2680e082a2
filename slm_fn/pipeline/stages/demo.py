"""Stage: all stages on the embedded corpus, with a report of every figure.

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
from slm_fn.data.chat import records
from slm_fn.pipeline import model_folder, replies
from slm_fn.pipeline.model_folder import Model
from slm_fn.pipeline.stages import demo_data, dpo, evaluate, pack, pretrain, sft, train_tokenizer
from slm_fn.pipeline.stages.demo_data import DemoData
from slm_fn.pipeline.stages.evaluate import ReplyReport
from slm_fn.pipeline.training.loop import TrainResult
from slm_fn.pipeline.training.stage import RunOptions

QUICK = (
    "pretrain.train.total_steps=80",
    "sft.train.total_steps=40",
    "dpo.train.total_steps=15",
)
QUESTIONS = ("Hello, how are you?", "What is a computer?", "Tell me a joke")
SEEDS = (0, 1, 2)
NUM_STAGES = 6


class StageRow(msgspec.Struct, frozen=True):
    """One stage: how long it took and what it reached."""

    stage: str
    seconds: float
    tokens: int | None = None
    loss: float | None = None
    bits_per_byte: float | None = None
    preference_accuracy: float | None = None


class DemoReport(msgspec.Struct, frozen=True):
    """What the demo did; saved as `report.json`."""

    rows: list[StageRow]
    counts: dict[str, int]
    replies: ReplyReport
    preferred_replies: ReplyReport
    chosen_change_nats_per_token: float
    preference_pairs: int
    samples: list[tuple[str, str]]
    model: str
    seconds: float


class _Stopwatch:
    """Announces stages, times them and collects their rows."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.rows: list[StageRow] = []
        self.note = note
        self.started = time.perf_counter()

    @contextmanager
    def stage(self, name: str, description: str) -> Iterator[dict[str, Any]]:
        """Time a stage; the caller puts its figures into the yielded dict."""
        self.note(f"[{len(self.rows) + 1}/{NUM_STAGES}] {name}: {description}")
        figures: dict[str, Any] = {}
        started = time.perf_counter()
        yield figures
        seconds = round(time.perf_counter() - started, 1)
        self.rows.append(StageRow(name, seconds, **figures))

    @property
    def seconds(self) -> float:
        """Since the first stage."""
        return round(time.perf_counter() - self.started, 1)


def demo(
    out: Path | str,
    preset: str = "tiny",
    quick: bool = False,
    overrides: tuple[str, ...] = (),
    device: str = "auto",
    live: bool | None = None,
    say: Callable[[str], None] = print,
) -> DemoReport:
    """Text to chat in one call: prepare, tokenize, pack, pretrain, fine-tune, DPO, evaluate.

    An interrupted demo resumes when it is called again with the same arguments.

    Raises:
        FileNotFoundError: the extra `demo` is not installed, or no such preset.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    out = Path(out)
    config = configs.load(preset, [*(QUICK if quick else ()), *overrides])
    options = RunOptions(device, live=live)
    stopwatch = _Stopwatch(say)
    with stopwatch.stage("prepare", "38 plays and the conversations to files"):
        data = demo_data.prepare_demo(out / "data")
    with stopwatch.stage("tokenize", _tokenize_description(config)) as row:
        row["tokens"] = _tokenize_and_pack(config, data, out)
    with stopwatch.stage("pretrain", f"{_steps(config.pretrain)} on 36 plays") as row:
        pretrained = pretrain.pretrain(config, out / "packed", out / "pretrain", options)
        row["tokens"] = pretrained.progress.tokens
        texts = evaluate.texts(_load(pretrained, device), data.held_out_plays)
        row |= {"loss": texts.loss_nats, "bits_per_byte": texts.bits_per_byte}
    chats = f"{data.counts['train']} conversations"
    with stopwatch.stage("sft", f"{_steps(config.sft)} on {chats}") as row:
        held_out = [data.held_out_chat]
        init = pretrained.checkpoint
        tuned = sft.sft(config, init, [data.chat], out / "sft", held_out, options, say)
        row |= {"tokens": tuned.progress.tokens, "loss": tuned.metrics.get("val_loss")}
        tuned_replies = _evaluate_replies(_load(tuned, device), data.held_out_chat)
    with stopwatch.stage("dpo", f"{_steps(config.dpo)} on preferred and rejected replies") as row:
        held_out = [data.held_out_pairs]
        init = tuned.checkpoint
        final = dpo.dpo(config, init, [data.pairs], out / "dpo", held_out, options, say)
        accuracy = final.metrics["preference_accuracy"]
        row |= {"tokens": final.progress.tokens, "preference_accuracy": accuracy}
    with stopwatch.stage("judge", "replies to every held-out prompt, three seeds"):
        model = _load(final, device)
        final_replies = _evaluate_replies(model, data.held_out_chat)
        answers = replies.reply_texts(model, QUESTIONS, max_tokens=64)
    report = DemoReport(
        rows=stopwatch.rows,
        counts=data.counts,
        replies=tuned_replies,
        preferred_replies=final_replies,
        chosen_change_nats_per_token=final.metrics["chosen_logp_change"],
        preference_pairs=int(final.metrics["preference_pairs"]),
        samples=list(zip(QUESTIONS, answers, strict=True)),
        model=str(out / "dpo"),
        seconds=stopwatch.seconds,
    )
    _write_report(report, out)
    return report


def _write_report(report: DemoReport, out: Path) -> None:
    files.write(out / "report.json", msgspec.json.format(msgspec.json.encode(report)))


def _steps(config: configs.PretrainConfig | configs.SftConfig | configs.DpoConfig) -> str:
    return f"{config.train.total_steps} steps"


def _tokenize_description(config: Config) -> str:
    vocab_size = config.tokenizer.vocab_size
    return f"a byte-level BPE of {vocab_size:,} tokens, and packed shards"


def _tokenize_and_pack(config: Config, data: DemoData, out: Path) -> int:
    """Train the tokenizer on plays and conversations, pack the plays; returns the tokens packed."""
    texts = [play.text for play in data.plays]
    for conversation in records.read_chat([data.chat]):
        texts += [message.content for message in conversation.messages]
    tokenizer = train_tokenizer.train_tokenizer(config.tokenizer, texts, out / "tokenizer.json")
    pack_config = pack.PackConfig(
        seq_len=config.model.context,
        val_fraction=0.0,
        val_names=tuple(play.name for play in data.held_out_plays),
    )
    plays = [*data.plays, *data.held_out_plays]
    packed = pack.pack_documents(pack_config, tokenizer, plays, out / "packed")
    return packed.splits["train"].tokens


def _load(result: TrainResult, device: str) -> Model:
    return model_folder.load(result.checkpoint, device, dtype=torch.float32)


def _evaluate_replies(model: Model, chat: Path) -> ReplyReport:
    """Reply to every conversation's first user message, at temperature 0.8, with every seed."""
    prompts: dict[str, None] = {}
    for conversation in records.read_chat([chat]):
        contents = [message.content for message in conversation.messages if message.role == "user"]
        prompts[contents[0]] = None
    model = replies.with_sampling(model, temperature=0.8)
    return evaluate.replies(model, list(prompts), SEEDS)
