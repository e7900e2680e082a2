"""A run folder: config.yaml, run.json, the logs and the checkpoints, from which a run resumes.

Invariant: only the first process of a job writes to it; all of them read it.
"""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

from slm_fn import config as configs
from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.core import files, host
from slm_fn.core.types import TrainState
from slm_fn.pipeline.training.stage import Stage
from slm_fn.train import checkpoint, run_log, tensorboard
from slm_fn.train.checkpoint import CheckpointInfo
from slm_fn.train.metrics import Progress

Resume = Literal["auto", "never"]
Note = Callable[[str], None]


class Interrupted(Exception):
    """Raised when a run was stopped by a signal and has saved; says where, and how to resume."""


class RunFolder(NamedTuple):
    """The folder of one run, and what is trained there."""

    path: Path
    stage: Stage
    config: Config
    config_hash: str


class StartingPoint(NamedTuple):
    """Where a run begins: at step 0, or at a checkpoint."""

    state: TrainState
    progress: Progress
    val_metrics: dict[str, float]


def open_run(path: Path | str, stage: Stage, config: Config) -> RunFolder:
    """Returns the run folder of a stage; nothing is written yet.

    Args:
        path: the folder, which need not exist.
        stage: what is trained.
        config: the config that the stage was made of.
    """
    return RunFolder(Path(path), stage, config, configs.digest(config))


def restore(run: RunFolder, resume: str, note: Note) -> StartingPoint:
    """Returns where to begin: the state of a checkpoint, or a fresh one.

    The caller should keep no reference to the state beside the one that its loop replaces: else the
    first state stays in memory to the end.

    Args:
        run: the run folder.
        resume: `auto` (the newest complete checkpoint), `never` (the folder must hold no run), or a
            checkpoint's path.
        note: receives lines about broken checkpoints and changed machines.

    Raises:
        ValueError: the folder holds another run (its config or data differ), or any run with
            `never`; or the model is to be sharded over a single process.
    """
    plan = run.stage.plan
    _check_can_start(run, resume)
    folder = _checkpoint_to_resume(run, resume, note)
    if folder is None:
        devices.set_num_threads(plan.settings.num_threads)
        return StartingPoint(plan.init_state(run.stage.init_params()), Progress(), {})
    info = checkpoint.verify(folder)
    _check_same_run(run, info)
    _restore_machine(run, info, note)
    state, info = checkpoint.load(folder, plan.init_state(run.stage.init_params()))
    note(f"resuming from {folder}")
    progress = Progress(
        info.step,
        info.position,
        info.tokens,
        info.seconds,
        info.best_val_loss,
        info.metric_sums,
    )
    return StartingPoint(state, progress, dict(info.metrics))


def _check_can_start(run: RunFolder, resume: str) -> None:
    plan = run.stage.plan
    if plan.settings.sharding == "shard" and plan.dist.mesh is None:
        raise ValueError(
            f"{run.stage.name}.train.sharding shard is for several processes, and this is one: "
            "start it by torchrun --nproc-per-node N -m slm_fn.cli.main, or set it to replicate"
        )
    root = run.path / "checkpoints"
    if resume == "never" and checkpoint.list_folders(root):
        raise ValueError(
            f"{run.path}: holds a run already, and --resume is never; "
            "choose another --out or delete it"
        )
    if root.is_dir() and plan.dist.is_first:
        files.remove_leftovers(root)


def _checkpoint_to_resume(run: RunFolder, resume: str, note: Note) -> Path | None:
    if resume not in ("auto", "never"):
        return Path(resume)
    folder, problems = checkpoint.find_newest(run.path)
    for problem in problems:
        note(f"checkpoint ignored: {problem}")
    return folder


def _check_same_run(run: RunFolder, info: CheckpointInfo) -> None:
    if info.config_hash != run.config_hash:
        raise ValueError(
            f"{run.path}: was made with another config "
            f"(compare {run.path / 'config.yaml'} with yours); "
            "choose another --out, or restore the config"
        )
    if info.data_hash != run.stage.data_hash:
        raise ValueError(
            f"{run.path}: was trained on other data; "
            "choose another --out, or give it the data it was begun with"
        )


def _restore_machine(run: RunFolder, info: CheckpointInfo, note: Note) -> None:
    """Restores the number of threads, and warns of what else may change the last bits."""
    plan = run.stage.plan
    num_threads = devices.set_num_threads(plan.settings.num_threads or info.num_threads)
    then_and_now = (
        ("threads", info.num_threads, num_threads),
        ("processes", info.num_processes, plan.dist.world_size),
        ("processor", info.processor, host.processor_name()),
        ("torch", info.torch, checkpoint.torch_version()),
    )
    for name, then, now in then_and_now:
        if then != now:
            note(
                f"warning: {name} was {then}, is {now}: "
                "the run resumes, but not bit for bit as if never stopped"
            )


def save_checkpoint(
    run: RunFolder, state: TrainState, progress: Progress, val_metrics: dict[str, float]
) -> Path:
    """Saves a checkpoint; every process must call it. Returns the checkpoint's folder.

    Args:
        run: the run folder.
        state: what to save.
        progress: how far the run has got.
        val_metrics: the evaluation since the checkpoint before, if any.
    """
    settings = run.stage.plan.settings
    if run.stage.plan.dist.is_first:
        info = _checkpoint_info(run, progress, val_metrics)
        checkpoint.save(run.path, state, info, run.stage.model_files, settings.keep)
    else:
        checkpoint.gather_shards(state)
    return checkpoint.step_folder(run.path, progress.step)


def _checkpoint_info(
    run: RunFolder, progress: Progress, val_metrics: dict[str, float]
) -> CheckpointInfo:
    plan = run.stage.plan
    return CheckpointInfo(
        step=progress.step,
        position=progress.position,
        seed=plan.settings.seed,
        tokens=progress.tokens,
        seconds=progress.seconds,
        num_threads=devices.set_num_threads(0),
        processor=host.processor_name(),
        torch=checkpoint.torch_version(),
        config_hash=run.config_hash,
        data_hash=run.stage.data_hash,
        num_processes=plan.dist.world_size,
        metrics=val_metrics,
        best_val_loss=progress.best_val_loss,
        metric_sums=progress.metric_sums,
    )


def write_description(run: RunFolder) -> None:
    """Writes config.yaml and run.json; a resumed run keeps its id, its start and its commit."""
    stage, plan = run.stage, run.stage.plan
    files.write(run.path / "config.yaml", configs.to_yaml(run.config))
    before = run_log.read_info(run.path)
    now = datetime.datetime.now(datetime.UTC)
    new_id = f"{stage.name}-{now:%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
    info = {
        "run_id": before.get("run_id") or new_id,
        "stage": stage.name,
        "started": before.get("started") or now.isoformat(timespec="seconds"),
        "git_commit": before.get("git_commit") or _git_commit(),
        "config_hash": run.config_hash,
        "data_hash": stage.data_hash,
        "seed": plan.settings.seed,
        "hook_list": list(plan.hook_names),
        "versions": {"python": platform.python_version(), "torch": checkpoint.torch_version()},
        "device": str(plan.dist.device),
        "processor": host.processor_name(),
        "num_threads": devices.set_num_threads(0),
        "num_processes": plan.dist.world_size,
        "total_steps": plan.settings.total_steps,
        "status": "running",
        "command": sys.argv,
    }
    run_log.write_info(run.path, info)


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


@contextmanager
def open_metrics_log(run: RunFolder, step: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yields a function that writes lines to metrics.jsonl and, if configured, to TensorBoard.

    At the end it writes to run.json whether the run is done, stopped or failed. Processes but the
    first write nothing.

    Args:
        run: the run folder.
        step: the step at which the run begins or resumes.
    """
    plan = run.stage.plan
    if not plan.dist.is_first:
        yield _discard
        return
    scalars: AbstractContextManager[Callable[[dict[str, Any]], None]]
    if plan.settings.tensorboard:
        scalars = tensorboard.open_writer(run.path, step)
    else:
        scalars = nullcontext(_discard)
    status = "failed"
    try:
        with scalars as write_scalars:

            def log(row: dict[str, Any]) -> None:
                run_log.append(run.path / run_log.METRICS, row)
                write_scalars(row)

            yield log
        status = "done"
    except Interrupted:
        status = "stopped"
        raise
    finally:
        run_log.update_info(run.path, status=status)


def _discard(row: dict[str, Any]) -> None:
    return None
