"""Whether training here is right: the device against the CPU, a run against its repetition, backend against backend.

Invariant: every check runs something or measures it, and names what differs first; none only looks at a version.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
from torch import Tensor

from slm_fn.core import device as devices
from slm_fn.core import jit, random, tree
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch, Params, TrainState
from slm_fn.infer import fast
from slm_fn.loss.lm import next_token
from slm_fn.nn import attention, gpt
from slm_fn.nn.cache import Slots
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.ranks import Ranks
from slm_fn.pipeline.step import plan
from slm_fn.train.loop import TrainConfig

Status = Literal["good", "bad", "note"]
SHAPE = ModelConfig(
    vocab_size=512, dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=128, context=64, qk_norm=True
)
TOLERANCE = 1e-3
"""Of float32 gradients on two chips, relative to a leaf's norm: sums in another order differ by some 1e-6."""
COARSE = 0.05
"""Of a gradient in half precision against float32."""
LEAST_DISK, LEAST_MEMORY = 2 << 30, 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """One check: what was looked at, how it came out, and the figure or the culprit."""

    check: str
    status: Status
    detail: str


class Diagnosis(msgspec.Struct, frozen=True):
    """All findings; it is healthy when none is bad."""

    device: str
    name: str
    torch: str
    threads: int
    healthy: bool
    findings: list[Finding]


def examine(
    device: str = "auto",
    compile: bool = False,
    determinism: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Run every check on a device, in some seconds; a check that fails to run is a bad finding, not an error.

    Args:
        compile: whether torch.compile is tried too, which takes half a minute.
        determinism: only whether a run repeats itself.
        note: told the name of each check before it runs.

    Raises:
        ValueError: no such device here.
    """
    place = devices.resolve(device)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "gradients": partial(_gradients, place),
        "repetition": partial(_repetition, place, determinism),
        "attention": partial(_attention, place),
        "precision": partial(_precision, place),
        "decoding": partial(_decoding, place),
        **({"compile": partial(_compile, place)} if compile else {}),
        "room": partial(_room, place),
    }
    if determinism:
        checks = {"repetition": checks["repetition"]}
    findings: list[Finding] = []
    for name, check in checks.items():
        note(f"checking {name}")
        try:
            findings += check()
        except Exception as error:
            # What a broken driver raises is what the doctor is asked about.
            findings.append(Finding(name, "bad", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"))
    return Diagnosis(
        device=str(place),
        name=devices.name_of(place),
        torch=str(torch.__version__),
        threads=devices.set_threads(0),
        healthy=all(finding.status != "bad" for finding in findings),
        findings=findings,
    )


def first_difference(left: Any, right: Any, tolerance: float = 0.0) -> tuple[str, float] | None:
    """The first leaf in which two trees differ by more than a share of its norm, and by how much; 0 is bit for bit.

    NaN is equal to nothing, so a leaf that holds one differs.

    Example:
        >>> first_difference({"a": torch.ones(2), "b": torch.ones(2)}, {"a": torch.ones(2), "b": torch.zeros(2)})
        ('b', inf)
    """
    others = tree.paths(right)
    for path, one in tree.paths(left).items():
        a, b = one.detach().cpu(), others[path].detach().cpu()
        if tolerance == 0:
            if not torch.equal(a, b):
                return path, _gap(a, b)
        elif not _gap(a, b) <= tolerance:
            return path, _gap(a, b)
    return None


def _gap(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    if torch.equal(a, b):
        return 0.0
    norm = b.norm().item()
    return (a - b).norm().item() / norm if norm else float("inf")


def _rough() -> Params:
    """Parameters as if trained a while: fresh ones are the identity in every block and prove nothing."""

    def shake(path: str, w: Tensor) -> Tensor:
        return w + random.normal(random.fold_in(1, path), w.shape, 0.1)

    return tree.update_in(gpt.init(SHAPE, 0), shake)


def _batch(position: int = 0, rows: int = 4) -> LMBatch:
    drawn = random.uniform(random.fold_in(position, "doctor"), (rows, SHAPE.context + 1))
    return LMBatch((drawn * SHAPE.vocab_size).long(), torch.ones(rows, SHAPE.context))


def _value_and_grad(place: torch.device, dtype: torch.dtype = torch.float32, **how: Any) -> tuple[Tensor, Params]:
    vg = value_and_grad(next_token(devices.compute_in(dtype)(partial(gpt.apply, SHAPE, **how))))
    (value, _), grads = vg(tree.to_device(_rough(), place), tree.to_device(_batch(), place))
    return value, grads


def _compared(check: str, found: Any, wanted: Any, tolerance: float, against: str) -> Finding:
    apart = first_difference(_named(found), _named(wanted), tolerance)
    if apart is None:
        return Finding(check, "good", f"loss and every gradient within {tolerance:g} of {against}")
    return Finding(check, "bad", f"{apart[0]} differs from {against} by {apart[1]:.2g}, more than {tolerance:g}")


def _named(found: Any) -> dict[str, Any]:
    return dict(zip(("loss", "grads"), found, strict=True))


def _gradients(place: torch.device) -> Iterator[Finding]:
    cpu = torch.device("cpu")
    wanted = _value_and_grad(cpu, backend="plain")
    if place.type != "cpu":
        devices.allow_tf32(False)
        yield _compared("float32 step", _value_and_grad(place), wanted, TOLERANCE, "the CPU's")
        return
    # Here the CPU itself is examined: its threads against one thread.
    threads = devices.set_threads(0)
    devices.set_threads(1)
    try:
        alone = _value_and_grad(cpu, backend="plain")
    finally:
        devices.set_threads(threads)
    yield _compared("float32 step", wanted, alone, TOLERANCE, f"one thread's (here {threads})")


def _repetition(place: torch.device, asked: bool) -> Iterator[Finding]:
    """Bits repeat on a CPU; on other chips sums may come in any order, which is a fault only where it matters."""
    first, second = _three_steps(place), _three_steps(place)
    apart = first_difference(first._asdict(), second._asdict())
    if apart is None:
        yield Finding("three steps twice", "good", "bit-equal: parameters and optimizer state")
    else:
        told = f"not bit-equal: {apart[0]} differs first, by {apart[1]:.2g}; a resumed run will not repeat itself"
        yield Finding("three steps twice", "bad" if asked or place.type == "cpu" else "note", told)


def _three_steps(place: torch.device) -> TrainState:
    settings = TrainConfig(total_steps=3, batch_size=4, engine="eager")
    how = plan(SHAPE, next_token, OptimConfig(), settings, Ranks(place))
    state = how.begin(tree.to_device(_rough(), place))
    for position in range(3):
        state, _ = how.step(state, tree.to_device(_batch(position), place))
    return tree.map(torch.clone, state)


def _attention(place: torch.device) -> Iterator[Finding]:
    backends: tuple[attention.Backend, ...] = ("plain", "fused")
    plain, fused = (_value_and_grad(place, backend=backend) for backend in backends)
    yield _compared("attention backends", fused, plain, TOLERANCE, "plain matmul and softmax")


def _precision(place: torch.device) -> Iterator[Finding]:
    best, wanted = devices.precision(place), _value_and_grad(place)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        advice = "auto takes it" if dtype == best else "it works; auto does not take it here"
        try:
            apart = first_difference(_named(_value_and_grad(place, dtype)), _named(wanted), COARSE)
        except RuntimeError as error:
            yield Finding(name, "bad" if dtype == best else "note", f"does not run: {str(error).splitlines()[0]}")
            continue
        if apart is None:
            yield Finding(name, "good", f"gradients within {COARSE:g} of float32's; {advice}")
        else:
            worse: Status = "bad" if dtype == best else "note"
            yield Finding(name, worse, f"{apart[0]} differs from float32's by {apart[1]:.2g}, more than {COARSE:g}")


def _decoding(place: torch.device) -> Iterator[Finding]:
    """The engine that generates here: against the eager one, or why it is no other."""
    params = tree.to_device(_rough(), place)
    decoder = fast.choose(SHAPE, params)
    if decoder.engine == "eager":
        yield Finding("decoding", "note", f"eager: {decoder.reason}")
        return
    tokens = torch.arange(8, device=place).view(4, 2)
    eager, found = (
        apply(params, tokens, Slots(*gpt.init_cache(SHAPE, params, 4)))[0]
        for apply in (partial(gpt.apply, SHAPE), decoder.apply)
    )
    gap = _gap(found, eager)
    told = f"{decoder.engine}: logits differ from the eager engine's by {gap:.2g}"
    yield Finding("decoding", "good" if gap < TOLERANCE else "bad", told)


def _compile(place: torch.device) -> Iterator[Finding]:
    lacking = devices.lacks_for_compiling(place)
    if lacking:
        yield Finding("compile", "note", f"not tried: {lacking}; the engine is eager here")
        return
    found = _value_and_grad(place, lift_block=jit.jit("compile"))
    yield _compared("compile", found, _value_and_grad(place), TOLERANCE, "eager")


def _room(place: torch.device) -> Iterator[Finding]:
    disk = shutil.disk_usage(Path.cwd()).free
    status: Status = "good" if disk >= LEAST_DISK else "bad"
    yield Finding("disk", status, f"{disk / 2**30:,.1f} GiB free in {Path.cwd()}, for checkpoints")
    for which in dict.fromkeys((place, torch.device("cpu"))):
        free = devices.free_memory(which)
        if free is None:
            yield Finding(f"memory, {which}", "note", "this platform does not tell how much is free")
            continue
        status = "good" if free >= LEAST_MEMORY else "bad"
        yield Finding(f"memory, {which}", status, f"{free / 2**30:,.1f} GiB free; `slm plan CONFIG` says what it takes")
