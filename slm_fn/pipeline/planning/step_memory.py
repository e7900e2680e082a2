"""Memory of a training step before it is run, by rows at a time, remat and placement.

Invariant: peaks are those of the real step, run on tensors without numbers; no formula estimates
them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal

import msgspec
import torch

from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.footprint import Footprint, measure_footprint
from slm_fn.core.types import LMBatch, Params
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.pipeline.training.distributed import DistributedContext
from slm_fn.pipeline.training.plan import make_plan

MIB = 1 << 20
CPU_OVERHEAD = 1.4
"""Memory of a CPU process over its tensors' memory: the C library's heap fragments."""
ACCELERATOR_OVERHEAD = 1.05
"""Memory on an accelerator over its tensors' memory: PyTorch's caching allocator fragments."""
ACCELERATOR_CONTEXT_MIB = 600
"""Context and kernels on an accelerator."""

Strategy = Literal["one device", "replicate", "shard", "tensor parallel"]


def ceil_div(number: int, divisor: int) -> int:
    """Integer division, rounded up.

    Example:
        >>> ceil_div(7, 2)
        4
    """
    return -(-number // divisor)


class StepMemory:
    """Memory of a config's step, by rows at a time and remat; each combination is run once.

    Args:
        config: with its model's vocabulary size.
        precision: of the computation, by name.
        is_accelerated: whether the device is an accelerator.
        process_mib: memory of the process beside its tensors; None takes the usual or measured one.
    """

    def __init__(
        self,
        config: Config,
        precision: str,
        is_accelerated: bool,
        process_mib: float | None = None,
    ) -> None:
        self.config = config
        self.precision = precision
        self.overhead = ACCELERATOR_OVERHEAD if is_accelerated else CPU_OVERHEAD
        if process_mib is not None:
            self.process_mib = process_mib
        elif is_accelerated:
            self.process_mib = ACCELERATOR_CONTEXT_MIB
        else:
            self.process_mib = devices.peak_memory(torch.device("cpu")) / MIB
        use_fused = is_accelerated and not config.model.attn_softcap
        self.lift = _with_fused_attention if use_fused else _unchanged
        self.measure = cache(self._measure)
        self.state_bytes = cache(self._state_bytes)

    def _measure(self, num_rows: int, remat: bool) -> Footprint:
        model = self.config.model
        settings = msgspec.structs.replace(
            self.config.pretrain.train,
            engine="eager",
            precision=self.precision,
            remat=remat,
            batch_size=num_rows,
            accumulate=1,
        )
        optim = self.config.pretrain.optim
        training = make_plan(
            model, next_token, optim, settings, DistributedContext(torch.device("cpu")), self.lift
        )

        def batch_at(position: int) -> LMBatch:
            tokens = torch.zeros(num_rows, model.context + 1, dtype=torch.long)
            return LMBatch(tokens, torch.ones(num_rows, model.context))

        def step_inputs() -> tuple[Any, Any]:
            return training.init_state(_empty_params(model)), training.batches(batch_at)(0)

        return measure_footprint(training.step, step_inputs)

    def _state_bytes(self) -> tuple[int, int]:
        """Bytes of the parameters, and of the optimizer's state."""
        params = 4 * gpt.count_params(self.config.model)
        context = self.config.model.context
        batch = 8 * (context + 1) + 4 * context
        optimizer = self.measure(1, False).argument_bytes - params - batch
        return params, max(0, optimizer)

    def peak(self, num_rows: int, remat: bool) -> int:
        """Peak bytes of a step: measured for one row and for the full batch, linear in between."""
        batch_size = self.config.pretrain.train.batch_size
        if num_rows in (1, batch_size) or batch_size < 3:
            return self.measure(num_rows, remat).peak_bytes
        low = self.measure(1, remat).peak_bytes
        high = self.measure(batch_size, remat).peak_bytes
        share = (num_rows - 1) / (batch_size - 1)
        return max(low, round(low + (high - low) * share))

    def memory_mib(
        self, where: Strategy, num_devices: int, num_rows: int, accumulate: int, remat: bool
    ) -> float:
        """Memory of one device in a placement, in MiB."""
        params, optimizer = self.state_bytes()
        live = self.peak(num_rows, remat)
        if accumulate > 1:
            live += params  # the sum of the micro-batches' gradients
        if where == "shard":
            # At rest a share of everything; during a step full parameters and gradients.
            live += (params + optimizer) // num_devices - optimizer
        elif where == "tensor parallel":
            # Activations may stay unsharded.
            live -= (2 * params + optimizer) * (num_devices - 1) // num_devices
        return self.process_mib + self.overhead * live / MIB

    def figures(self) -> dict[str, Any]:
        """The memory fields of `Budget`, for a step as the config describes it."""
        params, optimizer = self.state_bytes()
        settings = self.config.pretrain.train
        num_rows = ceil_div(settings.batch_size, settings.accumulate)
        at_rest = 2 * params + optimizer
        peak_mib = partial(self.memory_mib, "one device", 1, num_rows, settings.accumulate)
        return {
            "train_params_mib": params / MIB,
            "train_gradients_mib": params / MIB,
            "train_optimizer_mib": optimizer / MIB,
            "train_activations_mib": max(0, self.peak(num_rows, False) - at_rest) / MIB,
            "train_activations_remat_mib": max(0, self.peak(num_rows, True) - at_rest) / MIB,
            "train_peak_mib": peak_mib(False),
            "train_peak_remat_mib": peak_mib(True),
        }


def _empty_params(model: gpt.ModelConfig) -> Params:
    return tree.map_with_path(
        gpt.param_specs(model), lambda path, weight: torch.empty(weight.shape)
    )


def _unchanged(apply: Callable[..., Any]) -> Callable[..., Any]:
    return apply


def _with_fused_attention(apply: Callable[..., Any]) -> Callable[..., Any]:
    """Attention as on accelerators, where the scores are never stored."""
    return partial(apply, backend="fused")
