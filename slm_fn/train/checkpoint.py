"""Checkpoints: complete or absent, verified by checksum, restored bit for bit.

Invariant: `state.json` is written last and names every other file with its SHA-256; a folder
without it, or with one wrong byte, is never taken for a checkpoint.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from slm_fn.core import files, tree
from slm_fn.core.types import Params, TrainState
from slm_fn.optim.transforms import EmaState, find_state

WEIGHTS = "model.safetensors"
EMA_WEIGHTS = "model_ema.safetensors"
TRAIN_STATE = "train_state.safetensors"
STATE = "state.json"


class CheckpointInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`state.json`: how far the run and its data had got, and what the checkpoint was made with.

    `metric_sums` (`gathered` in the file) are sums over the steps since the last line of
    metrics.jsonl, so that the next line is the one of a run that never stopped. `best_val_loss`
    (`best` in the file) is the lowest so far.
    """

    step: int
    position: int
    seed: int
    tokens: int
    seconds: float
    num_threads: int
    processor: str
    torch: str
    config_hash: str
    data_hash: str
    num_processes: int = 1
    metrics: dict[str, float] = {}
    best_val_loss: float | None = msgspec.field(name="best", default=None)
    metric_sums: tuple[tuple[str, float, float], ...] = msgspec.field(name="gathered", default=())
    checksums: dict[str, str] = {}


def save_tree(path: Path | str, params: Any) -> None:
    """Writes any tree of tensors to one safetensors file; names are paths.

    Sharded leaves are gathered, one at a time.

    Args:
        path: the file to write.
        params: the tree.
    """
    flat = {
        name: tree.full_tensor(leaf.detach()).contiguous().cpu()
        for name, leaf in tree.named_leaves(params).items()
    }
    # A Transform may begin with one zero tensor at several paths; safetensors refuses tensors that
    # share memory.
    pointers: set[int] = set()
    for name, leaf in flat.items():
        pointer = leaf.untyped_storage().data_ptr()
        flat[name] = leaf.clone() if pointer in pointers else leaf
        pointers.add(pointer)
    save_file(flat, str(path), metadata={"format": "pt"})
    # safetensors makes the file readable for its owner only; it gets the permissions of the folder
    # instead.
    Path(path).chmod(Path(path).parent.stat().st_mode & 0o666)


def load_tree(path: Path | str, like: Any) -> Any:
    """Reads a safetensors file as a tree shaped as `like`, with its devices, dtypes and shards.

    Args:
        path: the file to read.
        like: a tree with the paths, shapes and dtypes to expect.

    Raises:
        ValueError: not a safetensors file, or it holds other paths, shapes or dtypes; names the
            first of each.
    """
    try:
        flat = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as safetensors ({error}); "
            "restore the file or take another checkpoint"
        ) from None
    wanted = tree.named_leaves(like)
    _check_same_tensors(str(path), flat, wanted)
    leaves = {name: _move_like(flat[name], leaf) for name, leaf in wanted.items()}
    return tree.from_named_leaves(like, leaves)


def _move_like(loaded: Tensor, like: Any) -> Tensor:
    """A tensor from a file on the device of `like`, and the same shard of it.

    Cloned: safetensors returns tensors at 4-byte alignment, where a float32 product rounds
        differently.
    """
    if not hasattr(like, "placements"):
        return loaded.to(like.device).clone()
    from slm_fn.lift import shard  # slow to import, and most programs never need it

    return shard.shard_tensor(loaded, like.placements, like.device_mesh)


def _check_same_tensors(
    file: str, loaded: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> None:
    missing = [name for name in wanted if name not in loaded]
    unexpected = [name for name in loaded if name not in wanted]
    if missing or unexpected:
        first = (missing or unexpected)[0]
        nearest = difflib.get_close_matches(first, loaded if missing else wanted, 1)
        hint = f"; nearest is {nearest[0]!r}" if nearest else ""
        raise ValueError(
            f"{file}: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"first {first!r}{hint}: it belongs to another model or optimizer"
        )
    for name, leaf in wanted.items():
        tensor = loaded[name]
        if tensor.shape != leaf.shape or tensor.dtype != leaf.dtype:
            raise ValueError(
                f"{file}: {name!r} is {tensor.dtype} {tuple(tensor.shape)}, "
                f"the config needs {leaf.dtype} {tuple(leaf.shape)}"
            )


def step_folder(run: Path | str, step: int) -> Path:
    """Returns the folder in which a run keeps the checkpoint of a step."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def save(
    run: Path | str,
    state: TrainState,
    info: CheckpointInfo,
    model_files: Mapping[str, bytes],
    keep: int,
) -> Path:
    """Writes a checkpoint: a model folder and the train state.

    Points `latest` and `best` at it, and drops the oldest.

    Args:
        run: the run folder.
        state: what to save.
        info: what to note beside it; checksums are added.
        model_files: config.json, tokenizer.json, generation.json: they make the folder a complete
            model folder.
        keep: how many of the newest to keep; the best one is kept whatever its age.

    Returns:
        The checkpoint's folder.

    Raises:
        OSError: the disk is full (checked before anything is written) or the folder cannot be
            written.
    """
    folder = step_folder(run, info.step)
    root = folder.parent
    root.mkdir(parents=True, exist_ok=True)
    _check_disk_space(folder, state)
    with files.replace_folder(folder) as out:
        for name, part in _trees_by_file(state).items():
            save_tree(out / name, part)
        for name, data in model_files.items():
            (out / name).write_bytes(data)
        checksums = {file.name: files.checksum(file) for file in sorted(out.iterdir())}
        info = msgspec.structs.replace(info, checksums=checksums)
        (out / STATE).write_bytes(msgspec.json.format(msgspec.json.encode(info)))
    files.write(root / "latest", folder.name)
    if info.best_val_loss is not None and info.metrics.get("val_loss") == info.best_val_loss:
        files.write(root / "best", folder.name)
    _drop_old(root, keep)
    return folder


def gather_shards(state: TrainState) -> None:
    """What the other processes do while the first one saves: they send it their shards.

    The files hold full tensors, so that a checkpoint loads on any number of processes.

    Args:
        state: this process's state.
    """
    for part in _trees_by_file(state).values():
        for leaf in tree.leaves(part):
            tree.full_tensor(leaf.detach())


def _check_disk_space(folder: Path, state: TrainState) -> None:
    needed = 2 * sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(state))
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise OSError(
            f"{folder}: {needed >> 20} MiB needed for a checkpoint, {free >> 20} MiB free; "
            "make room or lower train.keep"
        )


def _trees_by_file(state: TrainState) -> dict[str, Any]:
    """Which tensors go to which file of a checkpoint."""
    trees = {
        WEIGHTS: state.params,
        TRAIN_STATE: {"opt_state": state.opt_state, "step": state.step},
    }
    ema = find_state(state.opt_state, EmaState)
    if ema is not None:
        trees[EMA_WEIGHTS] = ema.average
    return trees


def _drop_old(root: Path, keep: int) -> None:
    best = root / "best"
    kept = {best.read_text().strip()} if best.is_file() else set()
    for old in list_folders(root)[keep:]:
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def list_folders(root: Path) -> list[Path]:
    """Returns the checkpoint folders in a run's `checkpoints/`, newest first, complete or not."""
    return sorted((path for path in root.glob("step-*") if path.is_dir()), reverse=True)


def verify(folder: Path | str) -> CheckpointInfo:
    """Reads a checkpoint's `state.json` and verifies the checksum of every file it names.

    Raises:
        ValueError: `state.json` is missing or unreadable, or a file is missing, truncated or
            changed.
    """
    folder = Path(folder)
    try:
        info = msgspec.json.decode((folder / STATE).read_bytes(), type=CheckpointInfo)
    except FileNotFoundError:
        raise ValueError(
            f"{folder}: no {STATE}, so this is not a complete checkpoint; take another one"
        ) from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{folder / STATE}: {error}; take another checkpoint") from None
    for name, checksum in info.checksums.items():
        file = folder / name
        if not file.is_file() or files.checksum(file) != checksum:
            raise ValueError(
                f"{file}: missing, truncated or changed since it was saved; take another checkpoint"
            )
    return info


def find_newest(run: Path | str) -> tuple[Path | None, list[str]]:
    """Returns a run's newest complete checkpoint, and a line for each broken one that is newer."""
    problems: list[str] = []
    for folder in list_folders(Path(run) / "checkpoints"):
        try:
            verify(folder)
        except ValueError as error:
            problems.append(str(error))
        else:
            return folder, problems
    return None, problems


def load(folder: Path | str, like: TrainState) -> tuple[TrainState, CheckpointInfo]:
    """Restores a train state bit for bit.

    Args:
        folder: the checkpoint.
        like: a state of the same shapes, on the devices to load to.

    Raises:
        ValueError: the checkpoint is broken or belongs to another model or optimizer.
    """
    folder = Path(folder)
    info = verify(folder)
    rest = load_tree(folder / TRAIN_STATE, {"opt_state": like.opt_state, "step": like.step})
    params = load_tree(folder / WEIGHTS, like.params)
    return TrainState(params, rest["opt_state"], rest["step"]), info


def load_weights(folder: Path | str, like: Params, raw: bool = False) -> Params:
    """Reads a model folder's weights.

    Args:
        folder: a model or checkpoint folder.
        like: parameters of the same shapes.
        raw: the weights as trained; by default their running average where the folder has one.
    """
    ema_file = Path(folder) / EMA_WEIGHTS
    use_ema = ema_file.is_file() and not raw
    weights: Params = load_tree(ema_file if use_ema else Path(folder) / WEIGHTS, like)
    return weights


def torch_version() -> str:
    """Returns PyTorch's version and build; another one may round differently."""
    return str(torch.__version__)
