"""Checkpoints: whole or absent, checked by checksum, restored bit for bit; latest, best, and which ones to keep.

Invariant: `state.json` is written last and names every other file with its SHA-256; a folder without it, or
with one wrong byte, is never taken for a checkpoint.
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
from slm_fn.optim.transforms import EmaState, find

WEIGHTS, AVERAGED, TRAIN_STATE, STATE = (
    "model.safetensors",
    "model_ema.safetensors",
    "train_state.safetensors",
    "state.json",
)


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a checkpoint knows beside its tensors: its place in the run and the data, and what it was made with.

    `gathered` is the diary's open line: sums over the steps since the last, so that the next says what it would have.
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
    best: float | None = None
    gathered: tuple[tuple[str, float, float], ...] = ()
    checksums: dict[str, str] = {}


def save_tree(path: Path | str, params: Any) -> None:
    """One safetensors file from any tree; names are paths. Sharded leaves are gathered, one at a time."""
    flat = {name: tree.whole(leaf.detach()).contiguous().cpu() for name, leaf in tree.paths(params).items()}
    # A Transform may begin with one zero in several places; safetensors refuses tensors that share memory.
    seen: set[int] = set()
    for name, leaf in flat.items():
        pointer = leaf.untyped_storage().data_ptr()
        flat[name] = leaf.clone() if pointer in seen else leaf
        seen.add(pointer)
    save_file(flat, str(path), metadata={"format": "pt"})
    # safetensors leaves a file for its owner alone; who may enter the folder may read it, as the files beside it.
    Path(path).chmod(Path(path).parent.stat().st_mode & 0o666)


def load_tree(path: Path | str, like: Any) -> Any:
    """The tree shaped as `like`, its leaves read from a safetensors file, on the devices and in the dtypes of `like`.

    Raises:
        ValueError: not a safetensors file, or it holds other paths, shapes or dtypes; names the first of each.
    """
    try:
        flat = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path}: cannot be read as safetensors ({error}); restore the file or take another checkpoint"
        ) from None
    _compare(str(path), flat, tree.paths(like))
    # Cloned: safetensors hands out tensors at 4-byte alignment, where a float32 product rounds differently.
    # A path that repeats a tensor is fine here: every leaf becomes its own.
    return tree.from_paths(like, {name: _settle(flat[name], leaf) for name, leaf in tree.paths(like).items()})


def _settle(found: Tensor, like: Any) -> Tensor:
    """A tensor from a file where another is: on its device, and of it the same shard."""
    if not hasattr(like, "placements"):
        return found.to(like.device).clone()
    from slm_fn.lift import shard  # imports for long, and most programs never meet a shard

    return shard.own(found, like.placements, like.device_mesh)


def _compare(where: str, have: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> None:
    missing = [name for name in want if name not in have]
    extra = [name for name in have if name not in want]
    if missing or extra:
        name = (missing or extra)[0]
        near = difflib.get_close_matches(name, have if missing else want, 1)
        hint = f"; nearest is {near[0]!r}" if near else ""
        raise ValueError(
            f"{where}: {len(missing)} tensors missing, {len(extra)} unexpected, first {name!r}{hint}: "
            "it belongs to another model or optimizer"
        )
    for name, leaf in want.items():
        if have[name].shape != leaf.shape or have[name].dtype != leaf.dtype:
            raise ValueError(
                f"{where}: {name!r} is {have[name].dtype} {tuple(have[name].shape)}, "
                f"the config asks for {leaf.dtype} {tuple(leaf.shape)}"
            )


def folder_of(run: Path | str, step: int) -> Path:
    """Where a run keeps the checkpoint of a step."""
    return Path(run) / "checkpoints" / f"step-{step:08d}"


def save(run: Path | str, state: TrainState, info: State, model_files: Mapping[str, bytes], keep: int) -> Path:
    """Write a checkpoint (a model folder plus the train state), point `latest` and `best` at it, drop the oldest.

    `model_files` make the folder self-contained: config.json, tokenizer.json, generation.json. The newest `keep`
    are kept, and the best one whatever its age.

    Raises:
        OSError: the disk is full (asked before anything is written) or the folder cannot be written.
    """
    place = folder_of(run, info.step)
    place.parent.mkdir(parents=True, exist_ok=True)
    need = 2 * sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(state))
    free = shutil.disk_usage(place.parent).free
    if free < need:
        raise OSError(
            f"{place}: {need >> 20} MiB needed for a checkpoint, {free >> 20} MiB free; make room or lower train.keep"
        )
    with files.folder(place) as out:
        for name, part in _parts(state).items():
            save_tree(out / name, part)
        for name, data in model_files.items():
            (out / name).write_bytes(data)
        checksums = {file.name: files.checksum(file) for file in sorted(out.iterdir())}
        (out / STATE).write_bytes(
            msgspec.json.format(msgspec.json.encode(msgspec.structs.replace(info, checksums=checksums)))
        )
    files.write(place.parent / "latest", place.name)
    if info.best is not None and info.metrics.get("val_loss") == info.best:
        files.write(place.parent / "best", place.name)
    _drop_old(place.parent, keep)
    return place


def attend(state: TrainState) -> None:
    """What the other processes do while the first one saves: give it their parts of sharded leaves, in the same order.

    The files hold whole tensors, so that a checkpoint loads on any number of processes.
    """
    for part in _parts(state).values():
        for leaf in tree.leaves(part):
            tree.whole(leaf.detach())


def _parts(state: TrainState) -> dict[str, Any]:
    ema = find(state.opt_state, EmaState)
    parts = {WEIGHTS: state.params, TRAIN_STATE: {"opt_state": state.opt_state, "step": state.step}}
    return parts if ema is None else {**parts, AVERAGED: ema.average}


def _drop_old(root: Path, keep: int) -> None:
    best = root / "best"
    kept = {best.read_text().strip()} if best.is_file() else set()
    for old in steps(root)[keep:]:
        if old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)


def steps(root: Path) -> list[Path]:
    """The checkpoint folders under `checkpoints/`, newest first, whole or not."""
    return sorted((p for p in root.glob("step-*") if p.is_dir()), reverse=True)


def check(place: Path | str) -> State:
    """Read a checkpoint's `state.json` and verify every file it names.

    Raises:
        ValueError: the marker is missing or unreadable, or a file is missing, truncated or changed.
    """
    place = Path(place)
    try:
        state = msgspec.json.decode((place / STATE).read_bytes(), type=State)
    except FileNotFoundError:
        raise ValueError(f"{place}: no {STATE}, so this is not a whole checkpoint; take another one") from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{place / STATE}: {error}; take another checkpoint") from None
    for name, digest in state.checksums.items():
        file = place / name
        if not file.is_file() or files.checksum(file) != digest:
            raise ValueError(f"{file}: missing, truncated or changed since it was saved; take another checkpoint")
    return state


def newest(run: Path | str) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, and a line for each broken one that was passed over."""
    passed: list[str] = []
    for place in steps(Path(run) / "checkpoints"):
        try:
            check(place)
        except ValueError as error:
            passed.append(str(error))
        else:
            return place, passed
    return None, passed


def load(place: Path | str, like: TrainState) -> tuple[TrainState, State]:
    """Restore a train state bit for bit, shaped as `like`.

    Raises:
        ValueError: the checkpoint is broken or belongs to another model or optimizer.
    """
    place = Path(place)
    info = check(place)
    rest = load_tree(place / TRAIN_STATE, {"opt_state": like.opt_state, "step": like.step})
    params = load_tree(place / WEIGHTS, like.params)
    return TrainState(params, rest["opt_state"], rest["step"]), info


def load_weights(place: Path | str, like: Params, raw: bool = False) -> Params:
    """A model folder's weights: the averaged ones where they are, unless `raw`."""
    averaged = Path(place) / AVERAGED
    return load_tree(averaged if averaged.is_file() and not raw else Path(place) / WEIGHTS, like)


def torch_version() -> str:
    """The build that made a checkpoint; another one may round differently."""
    return str(torch.__version__)
