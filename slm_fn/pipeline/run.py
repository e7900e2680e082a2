"""A run folder: begin or resume, train with signals caught, save. What pretrain, sft and dpo share.

Invariant: a killed run that is started again ends with the same bits as one that never stopped.
"""

from __future__ import annotations

import datetime
import os
import platform
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from slm_fn import config as configs
from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.core import files, host, tree
from slm_fn.core.types import Params, Step, TrainState
from slm_fn.data import stream
from slm_fn.pipeline.ranks import ALONE, Ranks
from slm_fn.train import board, checkpoint, runlog
from slm_fn.train.hooks import Observe
from slm_fn.train.loop import Outlets, TrainConfig, fit
from slm_fn.train.meter import Progress

Resume = Literal["auto", "never"]


class Stage(NamedTuple):
    """What one training stage brings: how it begins, its step, batches by position, and how to judge it."""

    name: str
    begin: Callable[[], TrainState]
    step: Step
    batch_at: Callable[[int], Any]
    evaluate: Callable[[Params], dict[str, float]]
    sample: Callable[[Params], list[dict[str, str]]]
    model_files: Mapping[str, bytes]
    data_hash: str
    hooks: tuple[str, ...] = ()
    observe: Observe | None = None
    flops_per_token: int = 0
    here: Ranks = ALONE
    told: tuple[str, ...] = ()


class Interrupted(Exception):
    """The run was asked to stop and has saved; its message says where and how to go on."""


class Outcome(NamedTuple):
    """A finished run: its last checkpoint and where it got to."""

    checkpoint: Path
    progress: Progress
    metrics: dict[str, float]


def train(
    stage: Stage, config: Config, settings: TrainConfig, out: Path | str, resume: str = "auto", live: bool | None = None
) -> Outcome:
    """Train a stage in a run folder to its last step, going on from the newest whole checkpoint (`auto`).

    Of several processes the first alone writes, shows and samples; all read, judge, and stop together.

    Args:
        resume: `auto`, `never` (the folder must hold no run), or the path of a checkpoint to go on from.

    Raises:
        ValueError: the folder holds another run (its config or data differ), or any and `never` was asked; nobody to
            shard with.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    run, digest, here = Path(out), configs.digest(config), stage.here
    with _display(stage, settings, live) as display:
        for line in stage.told:
            display.note(line)
        held, progress, info = _restore(stage, settings, digest, run, resume, display.note)
        here.check_same(progress.step, f"checkpoints in {run}")
        if here.first:
            runlog.rewind(run, progress.step)
            _describe_run(run, stage, config, settings, digest)
        batches = stream.prefetch(
            lambda at: devices.upload(stage.batch_at(at), here.device), progress.position, settings.total_steps
        )
        figures: dict[str, float] = dict(info.metrics) if info else {}
        place = checkpoint.folder_of(run, progress.step)

        def save(state: TrainState, now: Progress, metrics: dict[str, float]) -> str:
            nonlocal place
            figures.update(metrics)
            place = checkpoint.folder_of(run, now.step)
            if here.first:
                told = _state_of(now, settings, digest, stage, metrics)
                checkpoint.save(run, state, told, stage.model_files, settings.keep)
            else:
                checkpoint.attend(state)
            return str(place)

        def sample(params: Params, step: int) -> None:
            whole = tree.map(tree.whole, params)
            for row in stage.sample(whole) if here.first else ():
                runlog.append(run / runlog.SAMPLES, {"step": step, **row})
                display.note(f"step {step}: {row['prompt']!r} -> {row['text']!r}")

        with _diary(run, settings, here, progress.step) as log, stop_signals(here.first) as asked, closing(batches):
            outlets = Outlets(
                log, lambda p: stage.evaluate(tree.map(tree.whole, p)), sample, save, lambda: here.any(asked()), display
            )
            _, progress = fit(
                stage.step, held.pop(), batches, settings, progress, outlets, stage.observe, stage.flops_per_token
            )
            here.check_same(progress.step, "ends")
            if progress.step < settings.total_steps:
                at = f"step {progress.step} of {settings.total_steps}"
                raise Interrupted(f"stopped at {at}, saved {place}; the same command goes on from there")
    return Outcome(place, progress, figures)


@contextmanager
def _diary(run: Path, settings: TrainConfig, here: Ranks, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Takes lines: to metrics.jsonl and, if asked for, TensorBoard. At the end run.json is told how the run ended."""
    if not here.first:
        yield lambda row: None
        return
    status = "failed"
    try:
        with board.scalars(run, step) if settings.tensorboard else nullcontext(lambda row: None) as scalars:

            def log(row: dict[str, Any]) -> None:
                runlog.append(run / runlog.METRICS, row)
                scalars(row)

            yield log
        status = "done"
    except Interrupted:
        status = "stopped"
        raise
    finally:
        runlog.tell(run, status=status)


def _display(stage: Stage, settings: TrainConfig, live: bool | None) -> runlog.Display:
    if stage.here.first:
        return runlog.display(stage.name, settings.total_steps, live)
    return runlog.Plain(stage.name, settings.total_steps, write=lambda line: None)


def _restore(
    stage: Stage, settings: TrainConfig, digest: str, run: Path, resume: str, note: Callable[[str], None]
) -> tuple[list[TrainState], Progress, checkpoint.State | None]:
    """The state to begin with, in a list: the loop takes it out, else the first one would stay in memory to the end."""
    root = run / "checkpoints"
    if settings.sharding == "shard" and stage.here.mesh is None:
        raise ValueError(
            f"{stage.name}.train.sharding shard is for several processes, and this is one: start it by torchrun "
            "--nproc-per-node N -m slm_fn.cli.main, or set it to replicate"
        )
    if resume == "never" and checkpoint.steps(root):
        raise ValueError(f"{run}: holds a run already, and --resume never was asked; choose another --out or delete it")
    if root.is_dir() and stage.here.first:
        files.sweep(root)
    place, passed = (Path(resume), []) if resume not in ("auto", "never") else checkpoint.newest(run)
    for line in passed:
        note(f"passed over: {line}")
    if place is None:
        devices.set_threads(settings.num_threads)
        return [stage.begin()], Progress(), None
    info = checkpoint.check(place)
    if info.config_hash != digest:
        raise ValueError(
            f"{run}: was made with another config (compare {run / 'config.yaml'} with yours); "
            "choose another --out, or restore the config"
        )
    if info.data_hash != stage.data_hash:
        raise ValueError(
            f"{run}: was trained on other data; choose another --out, or hand it the data it was begun with"
        )
    _same_machine(info, settings, stage.here, note)
    state, info = checkpoint.load(place, stage.begin())
    note(f"going on from {place}")
    return [state], Progress(info.step, info.position, info.tokens, info.seconds, info.best, info.gathered), info


def _same_machine(info: checkpoint.State, settings: TrainConfig, here: Ranks, note: Callable[[str], None]) -> None:
    """Restore the number of threads, and say what else may change the last bits."""
    threads = devices.set_threads(settings.num_threads or info.num_threads)
    told = (
        ("threads", info.num_threads, threads),
        ("processes", info.num_processes, here.size),
        ("processor", info.processor, host.processor()),
        ("torch", info.torch, checkpoint.torch_version()),
    )
    for name, then, now in told:
        if then != now:
            note(f"warning: {name} was {then}, is {now}: the run goes on, but not bit for bit as if never stopped")


def _state_of(
    now: Progress, settings: TrainConfig, digest: str, stage: Stage, metrics: dict[str, float]
) -> checkpoint.State:
    return checkpoint.State(
        step=now.step,
        position=now.position,
        seed=settings.seed,
        tokens=now.tokens,
        seconds=now.seconds,
        num_threads=devices.set_threads(0),
        processor=host.processor(),
        torch=checkpoint.torch_version(),
        config_hash=digest,
        data_hash=stage.data_hash,
        num_processes=stage.here.size,
        metrics=metrics,
        best=now.best,
        gathered=now.gathered,
    )


def _describe_run(run: Path, stage: Stage, config: Config, settings: TrainConfig, digest: str) -> None:
    """`config.yaml` and `run.json`; a resumed run keeps its id and start."""
    files.write(run / "config.yaml", configs.to_yaml(config))
    path = run / runlog.RUN
    before = msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
    now = datetime.datetime.now(datetime.UTC)
    told = {
        "run_id": before.get("run_id") or f"{stage.name}-{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}",
        "stage": stage.name,
        "started": before.get("started") or now.isoformat(timespec="seconds"),
        "git_commit": before.get("git_commit") or _git_commit(),
        "config_hash": digest,
        "data_hash": stage.data_hash,
        "seed": settings.seed,
        "hook_list": list(stage.hooks),
        "versions": {"python": platform.python_version(), "torch": checkpoint.torch_version()},
        "device": str(stage.here.device),
        "processor": host.processor(),
        "num_threads": devices.set_threads(0),
        "num_processes": stage.here.size,
        "total_steps": settings.total_steps,
        "status": "running",
        "command": sys.argv,
    }
    files.write(path, msgspec.json.format(msgspec.json.encode(told)) + b"\n")


def _git_commit() -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def stop_signals(loud: bool = True) -> Iterator[Callable[[], bool]]:
    """Turn Ctrl+C and SIGTERM into a question the loop asks after each step; a second one ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if loud:
            os.write(2, b"\nstopping after this step, saving first (once more to stop at once)\n")

    old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
