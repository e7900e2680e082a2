"""Engines for a function: eager, compiled, or captured as one graph whose state buffers are donated.

Invariant: the function's meaning does not change; only its speed does, and with `capture` who owns the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
import torch._functorch.config

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.types import Metrics, Step, TrainState

Engine = Literal["eager", "compile", "graph"]

KEPT = 0.3
"""Share of the activations that compiled code keeps for its way back; the rest, elementwise work above all, is done
again. Memory is slower than arithmetic: 0.9 is faster than keeping all, 0.3 about as fast and a tenth leaner."""
MODELS = 64
"""How many models and optimizers a process may compile. They run the same lines, and of one line PyTorch keeps 8
compilations: whatever came ninth, in a sweep say, would run uncompiled."""
PAYS_FROM = 2e14
"""Operations of a run from which compiling is worth its half minute on a CPU, where it gains a tenth: minutes of work.

A count and no clock, so that a resumed run and every process of a job choose alike."""


class Choice(NamedTuple):
    """An engine, and why it was taken."""

    engine: Engine
    reason: str


def choose(asked: str, place: torch.device, flops: int | float = float("inf"), processes: int = 1) -> Choice:
    """The engine for a training run: what was asked for, or by `auto` what pays here.

    Args:
        flops: operations of the whole run.
        processes: ranks; a graph of one device does not hold the collectives of several.

    Raises:
        ValueError: no such engine, or this device cannot do what was asked for.

    Example:
        >>> choose("auto", torch.device("cpu"), flops=1e12).engine
        'eager'
    """
    if asked not in ("auto", "eager", "compile", "graph"):
        raise ValueError(f"engine {asked!r} is not one of auto, eager, compile, graph")
    lacking = devices.lacks_for_compiling(place)
    if asked == "eager":
        return Choice("eager", "as asked")
    if asked == "graph" and not devices.can_capture(place):
        raise ValueError(f"engine graph needs a device that replays graphs, and {place} does not; take compile or auto")
    if asked == "graph" and processes > 1:
        raise ValueError("engine graph is for one process; take compile or auto")
    if asked != "auto":
        if lacking:
            raise ValueError(f"engine {asked} cannot compile here: {lacking}; take eager or auto")
        return Choice("compile" if asked == "compile" else "graph", "as asked")
    if lacking:
        return Choice("eager", lacking)
    if devices.can_capture(place) and processes == 1:
        return Choice("graph", f"{place} runs a step as one launch")
    if place.type != "cpu":
        return Choice("compile", f"fewer launches on {place}")
    if flops < PAYS_FROM:
        return Choice("eager", "the run is too short for compiling to pay")
    return Choice("compile", f"a run of {flops:.0e} operations is worth compiling for")


def jit(engine: Engine = "eager") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Lift `f -> f`. Put it on a block of the model rather than on the whole: one compile serves every layer.

    `compile` needs a C++ compiler on a CPU. `graph` compiles too: `capture` then takes the step as a whole. How much
    compiled code keeps for its way back (`KEPT`) is a setting of the process.

    Raises:
        ValueError: no such engine.

    Example:
        >>> jit("eager")(abs)(-1)
        1
    """
    if engine not in ("eager", "compile", "graph"):
        raise ValueError(f"engine {engine!r} is not one of eager, compile, graph")
    if engine == "eager":
        return lambda f: f
    from torch._dynamo import config as dynamo  # all of dynamo, which who compiles nothing need not wait for

    torch._functorch.config.activation_memory_budget = KEPT
    dynamo.recompile_limit = max(dynamo.recompile_limit, MODELS)
    return torch.compile


def donate(f: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Lift `f(state, ...) -> (state, rest)`: what it makes of a state is written over the one it was handed.

    Compiled, the copies melt into the kernels before them, and no second state is ever held.

    Example:
        >>> old = {"w": torch.zeros(1)}
        >>> new, _ = donate(lambda state, x: ({"w": state["w"] + x}, None))(old, 2.0)
        >>> new is old, old["w"].item()
        (True, 2.0)
    """

    def donated(state: Any, *args: Any) -> tuple[Any, Any]:
        after, rest = f(state, *args)
        _write(state, after)
        return state, rest

    return donated


def capture(step: Step, warmup: int = 3) -> Step:
    """Lift `Step -> Step`: the whole step as one graph, recorded once for each shape of batch and then replayed.

    The state is donated: it lives in buffers of the graph, and each call writes its result over the state that it was
    handed. So keep no old state; a state that comes from elsewhere is copied in. Metrics are fresh each time.

    Args:
        warmup: calls before recording, whose results are dropped: kernels are chosen and compiled there.

    References: Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs".
    """
    recorded: dict[Any, _Recording] = {}
    held: list[tuple[TrainState, Any]] = []

    def run(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        if not held:
            # One memory for all: rows of many lengths would else hold the activations of every length at once.
            held.append((tree.map(torch.clone, state), devices.shared_memory(tree.leaves(state)[0].device)))
        own, memory = held[0]
        if state is not own:
            _write(own, state)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in tree.leaves(batch))
        if shapes not in recorded:
            recorded[shapes] = _record(step, own, batch, warmup, memory)
        graph = recorded[shapes]
        _write(graph.batch, batch)
        return own, tree.map(torch.clone, graph.replay())

    return run


class _Recording(NamedTuple):
    replay: Callable[[], Metrics]
    batch: Any


def _record(step: Step, state: TrainState, batch: Any, warmup: int, memory: Any) -> _Recording:
    place = tree.leaves(state)[0].device
    batch = tree.map(torch.clone, batch)

    def whole() -> Metrics:
        after, metrics = step(state, batch)
        _write(state, after)
        return metrics

    # A donated step trains in earnest while it warms up; what it was handed waits on the host, where there is room.
    kept = tree.map(lambda x: x.to("cpu", copy=True), state)
    with devices.side_stream(place):
        for _ in range(warmup):
            step(state, batch)
    _write(state, kept)
    return _Recording(devices.record(place, whole, memory), batch)


def _write(buffers: Any, values: Any) -> None:
    for buffer, value in zip(tree.leaves(buffers), tree.leaves(values), strict=True):
        if buffer is not value:
            buffer.copy_(value)
