"""Checks of training on this machine: device against CPU, a run against itself, engines compared.

Invariant: every check runs or measures something and names the first difference; none only reads a
version.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from slm_fn.core import device as devices
from slm_fn.core import jit, random, tree
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch, Params, TrainState
from slm_fn.infer import decoder as decoders
from slm_fn.loss.lm import next_token
from slm_fn.nn import attention, gpt
from slm_fn.nn.cache import InPlaceKVCache
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.training.distributed import DistributedContext
from slm_fn.pipeline.training.plan import make_plan
from slm_fn.train.config import TrainConfig

Status = Literal["good", "bad", "note"]

CPU = torch.device("cpu")
MODEL = ModelConfig(
    vocab_size=512,
    dim=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=128,
    context=64,
    qk_norm=True,
)
TOLERANCE = 1e-3
"""Of float32 gradients on two devices, relative to a leaf's norm: another order of summation
changes some 1e-6."""
HALF_TOLERANCE = 0.05
"""Of a gradient in half precision against float32."""
MIN_FREE_DISK = 2 << 30
MIN_FREE_MEMORY = 1 << 30
GIB = 1 << 30


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: its name, its status, and the figure or the first difference."""

    check: str
    status: Status
    detail: str


class Diagnosis(msgspec.Struct, frozen=True):
    """All findings. Healthy means that none of them is bad."""

    device: str
    name: str
    torch: str
    threads: int
    healthy: bool
    findings: list[Finding]


class Difference(NamedTuple):
    """A leaf in which two trees differ, and by which share of its norm."""

    path: str
    share: float


def examine(
    device: str = "auto",
    compile: bool = False,
    determinism: bool = False,
    note: Callable[[str], None] = lambda line: None,
) -> Diagnosis:
    """Run every check on a device, in a few seconds.

    A check that raises becomes a bad finding: the errors of a broken driver are what is looked for.

    Args:
        compile: try torch.compile as well, which takes half a minute.
        determinism: check only that a run repeats itself.
        note: called with a line before each check.

    Raises:
        ValueError: no such device here.
    """
    target = devices.resolve(device)
    findings: list[Finding] = []
    for name, check in _checks(target, compile, determinism).items():
        note(f"checking {name}")
        try:
            findings += check()
        except Exception as error:
            message = " ".join(str(error).split())[:200]
            findings.append(Finding(name, "bad", f"{type(error).__name__}: {message}"))
    return Diagnosis(
        device=str(target),
        name=devices.device_name(target),
        torch=str(torch.__version__),
        threads=devices.set_num_threads(0),
        healthy=all(finding.status != "bad" for finding in findings),
        findings=findings,
    )


def _checks(
    device: torch.device, compile: bool, determinism: bool
) -> dict[str, Callable[[], Iterator[Finding]]]:
    if determinism:
        return {"repetition": partial(_repetition, device, True)}
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "gradients": partial(_gradients, device),
        "repetition": partial(_repetition, device, False),
        "attention": partial(_attention, device),
        "precision": partial(_precision, device),
        "decoding": partial(_decoding, device),
    }
    if compile:
        checks["compile"] = partial(_compile, device)
    checks["free space"] = partial(_free_space, device)
    return checks


def first_difference(left: Any, right: Any, tolerance: float = 0.0) -> Difference | None:
    """The first leaf in which two trees differ by more than a share of the right leaf's norm.

    A tolerance of 0 compares bits. NaN equals nothing, so a leaf that holds one differs.

    Example:
        >>> left = {"a": torch.ones(2), "b": torch.ones(2)}
        >>> first_difference(left, {"a": torch.ones(2), "b": torch.zeros(2)})
        Difference(path='b', share=inf)
    """
    right_leaves = tree.named_leaves(right)
    for path, leaf in tree.named_leaves(left).items():
        a = leaf.detach().cpu()
        b = right_leaves[path].detach().cpu()
        is_equal = torch.equal(a, b) if tolerance == 0 else _relative_gap(a, b) <= tolerance
        if not is_equal:
            return Difference(path, _relative_gap(a, b))
    return None


def _relative_gap(a: Tensor, b: Tensor) -> float:
    """`|a - b| / |b|`."""
    a = a.double()
    b = b.double()
    if torch.equal(a, b):
        return 0.0
    norm = b.norm().item()
    if norm == 0:
        return float("inf")
    return float((a - b).norm().item() / norm)


def _perturbed_params() -> Params:
    """Parameters as after some training: in fresh ones every block is the identity."""

    def perturb(path: str, weight: Tensor) -> Tensor:
        return weight + random.normal(random.fold_in(1, path), weight.shape, 0.1)

    return tree.map_with_path(gpt.init(MODEL, 0), perturb)


def _batch(position: int = 0, num_rows: int = 4) -> LMBatch:
    shape = (num_rows, MODEL.context + 1)
    uniform = random.uniform(random.fold_in(position, "doctor"), shape)
    tokens = (uniform * MODEL.vocab_size).long()
    return LMBatch(tokens, torch.ones(num_rows, MODEL.context))


def _value_and_grad(
    device: torch.device, dtype: torch.dtype = torch.float32, **options: Any
) -> dict[str, Any]:
    """Loss and gradients of one batch; `options` go to `gpt.apply`."""
    apply = devices.with_compute_dtype(dtype)(partial(gpt.apply, MODEL, **options))
    params = tree.to_device(_perturbed_params(), device)
    batch = tree.to_device(_batch(), device)
    (loss, _), grads = value_and_grad(next_token(apply))(params, batch)
    return {"loss": loss, "grads": grads}


def _compare(check: str, actual: Any, expected: Any, reference: str) -> Finding:
    difference = first_difference(actual, expected, TOLERANCE)
    if difference is None:
        detail = f"loss and every gradient within {TOLERANCE:g} of {reference}"
        return Finding(check, "good", detail)
    detail = (
        f"{difference.path} differs from {reference} by {difference.share:.2g}, "
        f"more than {TOLERANCE:g}"
    )
    return Finding(check, "bad", detail)


def _gradients(device: torch.device) -> Iterator[Finding]:
    """The device against the CPU; on a CPU, all threads against one."""
    on_cpu = _value_and_grad(CPU, backend="plain")
    if device.type != "cpu":
        devices.allow_tf32(False)
        yield _compare("float32 step", _value_and_grad(device), on_cpu, "the CPU's")
        return
    num_threads = devices.set_num_threads(0)
    devices.set_num_threads(1)
    try:
        on_one_thread = _value_and_grad(CPU, backend="plain")
    finally:
        devices.set_num_threads(num_threads)
    reference = f"one thread's (here {num_threads})"
    yield _compare("float32 step", on_cpu, on_one_thread, reference)


def _repetition(device: torch.device, is_requested: bool) -> Iterator[Finding]:
    """Whether three steps repeat bit for bit.

    They do on a CPU. Elsewhere the order of sums may vary, which is a fault only where determinism
    was requested.
    """
    first = _three_steps(device)
    second = _three_steps(device)
    difference = first_difference(first._asdict(), second._asdict())
    if difference is None:
        detail = "bit-equal: parameters and optimizer state"
        yield Finding("three steps twice", "good", detail)
        return
    is_fault = is_requested or device.type == "cpu"
    detail = (
        f"not bit-equal: {difference.path} differs first, by {difference.share:.2g}; "
        "a resumed run will not repeat itself"
    )
    yield Finding("three steps twice", "bad" if is_fault else "note", detail)


def _three_steps(device: torch.device) -> TrainState:
    settings = TrainConfig(total_steps=3, batch_size=4, engine="eager")
    training = make_plan(MODEL, next_token, OptimConfig(), settings, DistributedContext(device))
    state = training.init_state(tree.to_device(_perturbed_params(), device))
    for position in range(3):
        state, _ = training.step(state, tree.to_device(_batch(position), device))
    return TrainState(*tree.map(torch.clone, state))


def _attention(device: torch.device) -> Iterator[Finding]:
    """The fused attention kernel against plain products."""
    backends: tuple[attention.Backend, attention.Backend] = ("plain", "fused")
    plain, fused = (_value_and_grad(device, backend=backend) for backend in backends)
    yield _compare("attention backends", fused, plain, "plain matmul and softmax")


def _precision(device: torch.device) -> Iterator[Finding]:
    """Gradients in both half precisions against float32."""
    expected = _value_and_grad(device)
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        is_auto = dtype == devices.matmul_dtype(device)
        fault: Status = "bad" if is_auto else "note"
        try:
            difference = first_difference(_value_and_grad(device, dtype), expected, HALF_TOLERANCE)
        except RuntimeError as error:
            yield Finding(name, fault, f"does not run: {str(error).splitlines()[0]}")
            continue
        if difference is None:
            advice = "auto takes it" if is_auto else "it works; auto does not take it here"
            detail = f"gradients within {HALF_TOLERANCE:g} of float32's; {advice}"
            yield Finding(name, "good", detail)
            continue
        detail = (
            f"{difference.path} differs from float32's by {difference.share:.2g}, "
            f"more than {HALF_TOLERANCE:g}"
        )
        yield Finding(name, fault, detail)


def _decoding(device: torch.device) -> Iterator[Finding]:
    """The decoding engine of this machine against the eager one, or the reason why it is eager."""
    params = tree.to_device(_perturbed_params(), device)
    decoder = decoders.select(MODEL, params)
    if decoder.engine == "eager":
        yield Finding("decoding", "note", f"eager: {decoder.reason}")
        return
    tokens = torch.arange(8, device=device).view(4, 2)

    def logits_of(apply: Any) -> Tensor:
        cache = InPlaceKVCache(*gpt.init_cache(MODEL, params, 4))
        logits: Tensor = apply(params, tokens, cache)[0]
        return logits

    expected = logits_of(partial(gpt.apply, MODEL))
    gap = _relative_gap(logits_of(decoder.apply), expected)
    detail = f"{decoder.engine}: logits differ from the eager engine's by {gap:.2g}"
    yield Finding("decoding", "good" if gap < TOLERANCE else "bad", detail)


def _compile(device: torch.device) -> Iterator[Finding]:
    """A compiled block against the eager one."""
    lacking = devices.compile_obstacle(device)
    if lacking:
        yield Finding("compile", "note", f"not tried: {lacking}; the engine is eager here")
        return
    jit.configure_compiler()
    compiled = _value_and_grad(device, lift_block=jit.jit("compile"))
    yield _compare("compile", compiled, _value_and_grad(device), "eager")


def _free_space(device: torch.device) -> Iterator[Finding]:
    """Free disk and memory."""
    disk = shutil.disk_usage(Path.cwd()).free
    status: Status = "good" if disk >= MIN_FREE_DISK else "bad"
    yield Finding("disk", status, f"{disk / GIB:,.1f} GiB free in {Path.cwd()}, for checkpoints")
    for memory in dict.fromkeys((device, CPU)):
        check = f"memory, {memory}"
        free = devices.free_memory(memory)
        if free is None:
            yield Finding(check, "note", "this platform does not report free memory")
            continue
        status = "good" if free >= MIN_FREE_MEMORY else "bad"
        detail = f"{free / GIB:,.1f} GiB free; `slm plan CONFIG` estimates what a run takes"
        yield Finding(check, status, detail)
