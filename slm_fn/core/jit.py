"""Execution engines of a function: eager, compiled, or captured as one device graph.

Invariant: an engine changes the speed of a function, and with `donate` and `capture` the
ownership of its state, but no result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
import torch._functorch.config

from slm_fn.core import device as devices
from slm_fn.core import host, tree
from slm_fn.core.types import DonatedState, DonatingStep, Metrics, Step, TrainState

Engine = Literal["eager", "compile", "graph"]
EngineName = Literal["auto", "eager", "compile", "graph"]
ENGINE_NAMES: tuple[EngineName, ...] = ("auto", "eager", "compile", "graph")

F = TypeVar("F", bound=Callable[..., Any])
Rest = TypeVar("Rest")

ACTIVATION_MEMORY_BUDGET = 0.3
"""Share of the activations that compiled code keeps for the backward pass.

The rest, elementwise operations above all, is recomputed. Memory is slower than arithmetic: 0.9 is
faster than keeping all; 0.3 is about as fast and uses a tenth less memory.
"""

RECOMPILE_LIMIT = 64
"""How many models and optimizers one process may compile.

They run the same lines of code, and by default PyTorch keeps 8 compilations of a line: the ninth
model of a hyper-parameter sweep, say, would run uncompiled.
"""

MIN_FLOPS_TO_COMPILE = 2e14
"""Operations in a run from which compiling for half a minute pays on a CPU, where it gains a tenth.

A count of operations rather than a time, so that a resumed run and every process of a job choose
the same engine.
"""


class EngineChoice(NamedTuple):
    """An engine, and the reason why it was chosen."""

    engine: Engine
    reason: str


def choose_engine(
    name: str,
    device: torch.device,
    flops: int | float = float("inf"),
    num_processes: int = 1,
) -> EngineChoice:
    """Returns the engine for a training run: the named one, or for `auto` the fastest one here.

    Args:
        name: `auto`, `eager`, `compile` or `graph`.
        device: where the run computes.
        flops: operations of the complete run.
        num_processes: processes that train together; a graph of one device cannot hold the
            collectives of several.

    Raises:
        ValueError: no such engine, or this device does not support it.

    Example:
        >>> choose_engine("auto", torch.device("cpu"), flops=1e12).engine
        'eager'
    """
    if name not in ENGINE_NAMES:
        raise ValueError(f"engine {name!r} is not one of {', '.join(ENGINE_NAMES)}")
    if name == "eager":
        return EngineChoice("eager", "as configured")
    obstacle = devices.compile_obstacle(device)
    if name == "auto":
        return _choose_automatically(device, flops, num_processes, obstacle)
    if name == "graph":
        _check_graph_support(device, num_processes)
    if obstacle:
        raise ValueError(f"engine {name} cannot compile here: {obstacle}; use eager or auto")
    return EngineChoice("compile" if name == "compile" else "graph", "as configured")


def _choose_automatically(
    device: torch.device,
    flops: int | float,
    num_processes: int,
    obstacle: str,
) -> EngineChoice:
    if obstacle:
        return EngineChoice("eager", obstacle)
    if devices.supports_graph_capture(device) and num_processes == 1:
        return EngineChoice("graph", f"{device} runs a step as one launch")
    if device.type != "cpu":
        return EngineChoice("compile", f"fewer launches on {device}")
    if flops < MIN_FLOPS_TO_COMPILE:
        return EngineChoice("eager", "the run is too short for compiling to pay")
    return EngineChoice("compile", f"a run of {flops:.0e} operations is worth compiling for")


def _check_graph_support(device: torch.device, num_processes: int) -> None:
    if not devices.supports_graph_capture(device):
        raise ValueError(
            f"engine graph needs a device that replays graphs, and {device} does not; "
            "use compile or auto"
        )
    if num_processes > 1:
        raise ValueError("engine graph supports one process only; use compile or auto")


def configure_compiler() -> None:
    """Sets the process-wide compiler options: `ACTIVATION_MEMORY_BUDGET` and `RECOMPILE_LIMIT`.

    Call it once, before the first compiled call of a process.
    """
    # Importing all of dynamo takes a second and 70 MiB: only processes that compile pay for it.
    from torch._dynamo import config as dynamo_config

    torch._functorch.config.activation_memory_budget = ACTIVATION_MEMORY_BUDGET
    dynamo_config.recompile_limit = max(dynamo_config.recompile_limit, RECOMPILE_LIMIT)


def configure_process(engine: Engine, allow_tf32: bool) -> None:
    """Sets the process-wide options of a training run; called once, before the first step.

    They are: the C library keeps freed memory (`host.keep_freed_memory`), float32 products may use
    TF32 or may not, and, where the engine compiles, the compiler options.

    Args:
        engine: the engine that the run will use.
        allow_tf32: whether float32 matrix products may round their factors to TF32.
    """
    host.keep_freed_memory()
    devices.allow_tf32(allow_tf32)
    if engine != "eager":
        configure_compiler()


def jit(engine: Engine = "eager") -> Callable[[F], F]:
    """Lifts `f -> f`: runs the function by an engine.

    Apply it to a block of the model rather than to the model: one compilation serves every
    layer. `compile` needs a C++ compiler on a CPU. `graph` compiles as well; `capture` then
    records the step. Processes that compile call `configure_compiler` first.

    Raises:
        ValueError: no such engine.

    Example:
        >>> jit("eager")(abs)(-1)
        1
    """
    if engine not in ("eager", "compile", "graph"):
        raise ValueError(f"engine {engine!r} is not one of eager, compile, graph")
    if engine == "eager":
        return _identity
    return cast(Callable[[F], F], torch.compile)


def _identity(function: F) -> F:
    return function


def donate(
    function: Callable[[TrainState, Any], tuple[TrainState, Rest]],
) -> Callable[[DonatedState, Any], tuple[DonatedState, Rest]]:
    """Lifts `f(state, x) -> (state, rest)`: the new state is written over the old one.

    In compiled code the copies are fused into the kernels before them, and no second state is ever
    allocated.

    Returns:
        The function; it returns the state object it received, with new values in its tensors.

    Example:
        >>> def add(state, x):
        ...     return state._replace(step=state.step + x), None
        >>> old = DonatedState(TrainState({}, (), torch.tensor(0)))
        >>> new, _ = donate(add)(old, 2)
        >>> new is old, old.step.item()
        (True, 2)
    """

    def donated(state: DonatedState, argument: Any) -> tuple[DonatedState, Rest]:
        new_state, rest = function(state, argument)
        _copy_into(state, new_state)
        return state, rest

    return donated


def capture(step: Step | DonatingStep, num_warmup_calls: int = 3) -> DonatingStep:
    """Lifts `Step -> DonatingStep`: the step as one device graph; see `CapturedStep`."""
    return CapturedStep(step, num_warmup_calls)


class CapturedStep:
    """A step recorded as one graph for each shape of batch, and replayed from then on.

    The state is donated: it lives in buffers of the graph, and each call writes its result over the
    state it returned before. A state that comes from elsewhere is copied into the buffers.
    Metrics are new tensors each time.

    References: Nguyen et al. 2021, "Accelerating PyTorch with CUDA Graphs".
    """

    def __init__(self, step: Step | DonatingStep, num_warmup_calls: int = 3) -> None:
        """Records nothing yet: the first call allocates the buffers.

        Args:
            step: the step to record.
            num_warmup_calls: calls before each recording, whose results are dropped: kernels are
                chosen and compiled in them.
        """
        self._step = cast(Step, step)
        self._num_warmup_calls = num_warmup_calls
        self._recordings: dict[Any, _Recording] = {}
        self._buffers: DonatedState | None = None
        self._graph_pool: Any = None

    def __call__(self, state: DonatedState, batch: Any, /) -> tuple[DonatedState, Metrics]:
        """Returns the buffers that hold the new state, and a copy of the metrics."""
        buffers = self._load(state)
        recording = self._recording_for(buffers, batch)
        _copy_into(recording.batch, batch)
        metrics = recording.replay()
        return buffers, tree.map(torch.clone, metrics)

    def _load(self, state: DonatedState) -> DonatedState:
        """Returns the buffers, filled with the state."""
        if self._buffers is None:
            self._buffers = tree.map(torch.clone, state)
            # One pool for all graphs: otherwise batches of many lengths would hold the
            # activations of every length at the same time.
            self._graph_pool = devices.graph_pool(tree.leaves(state)[0].device)
        if state is not self._buffers:
            _copy_into(self._buffers, state)
        return self._buffers

    def _recording_for(self, buffers: DonatedState, batch: Any) -> _Recording:
        """Returns the recording for batches of this shape, made on first use."""
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in tree.leaves(batch))
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(buffers, batch)
        return self._recordings[shapes]

    def _record(self, buffers: DonatedState, batch: Any) -> _Recording:
        device = tree.leaves(buffers)[0].device
        batch_buffers = tree.map(torch.clone, batch)

        def step_in_place() -> Metrics:
            new_state, metrics = self._step(buffers, batch_buffers)
            _copy_into(buffers, new_state)
            return metrics

        # A donating step really trains while it warms up; the original state waits in host memory,
        # of which there is more.
        original = tree.map(_copy_to_host, buffers)
        with devices.side_stream(device):
            for _ in range(self._num_warmup_calls):
                self._step(buffers, batch_buffers)
        _copy_into(buffers, original)
        replay = devices.capture_graph(device, step_in_place, self._graph_pool)
        return _Recording(replay, batch_buffers)


class _Recording(NamedTuple):
    """A recorded step and the tensors from which it reads its batch."""

    replay: Callable[[], Metrics]
    batch: Any


def _copy_to_host(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.to("cpu", copy=True)


def _copy_into(buffers: Any, values: Any) -> None:
    for buffer, value in zip(tree.leaves(buffers), tree.leaves(values), strict=True):
        if buffer is not value:
            buffer.copy_(value)
