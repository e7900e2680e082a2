"""train/memory.py: a retry in micro-batches has the same gradient; once memory really ends."""

import subprocess
import sys
import textwrap

import pytest
import torch

from slm_fn.core import device as devices
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.loss.lm import next_token
from slm_fn.train.config import TrainConfig
from slm_fn.train.memory import MicroBatches, OutOfMemory, advise, retry_on_out_of_memory


def short_of(room):
    """value_and_grad on a device with room for so many rows."""

    def lift(vg):
        def tight(params, batch, scale=None):
            if len(batch.tokens) > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return vg(params, batch, scale)

        return tight

    return lift


def test_the_gradient_is_that_of_the_whole_batch(config, rough, batch, model, gap, purely):
    params, rows = rough(config), batch(config, rows=8)
    vg = value_and_grad(next_token(model))
    tight = short_of(2)(vg)
    micro_batches = MicroBatches()
    survivor = retry_on_out_of_memory(lambda count: accumulate(count)(tight), micro_batches)
    (value, aux), grads = purely(survivor, params, rows)
    (want, wanted_aux), wanted = vg(params, rows)
    assert gap(grads, wanted) < 1e-5
    assert gap({"value": value, **aux}, {"value": want, **wanted_aux}) < 1e-5
    assert micro_batches.take_messages() == [
        "out of memory with 8 rows at a time: 4 from here on",
        "out of memory with 4 rows at a time: 2 from here on",
    ]


def test_what_was_found_stays(config, rough, batch, model):
    params, tried = rough(config), []

    def make(count):
        vg = accumulate(count)(short_of(3)(value_and_grad(next_token(model))))

        def counted(*args):
            tried.append(count)
            return vg(*args)

        return counted

    micro_batches = MicroBatches()
    survivor = retry_on_out_of_memory(make, micro_batches)
    for key in range(3):
        survivor(params, batch(config, rows=6, key=key))
    assert tried == [1, 2, 2, 2]  # 6 rows, then 3 and 3; the later batches do not try 6 again
    assert len(micro_batches.take_messages()) == 1
    survivor(params, batch(config, rows=7))
    assert tried[4:] == [2, 4]  # 7 rows in two parts are 3 and 4
    assert micro_batches.count == 4
    assert micro_batches.take_messages() == ["out of memory with 4 rows at a time: 2 from here on"]
    assert micro_batches.take_messages() == []


def test_one_row_that_does_not_fit_is_an_error_with_advice(config, rough, batch, model):
    survivor = retry_on_out_of_memory(
        lambda count: accumulate(count)(short_of(0)(value_and_grad(next_token(model)))),
        MicroBatches(),
        advice=advise(TrainConfig(precision="float32"), 32),
    )
    with pytest.raises(
        OutOfMemory,
        match=r"one row \(13\) .*train.remat=true --set .*bfloat16.* model.context \(32\)",
    ):
        survivor(rough(config), batch(config, rows=4))


def test_other_errors_are_not_hidden(config, rough, batch):
    tried = []

    def make(parts):
        def broken(params, batch):
            tried.append(parts)
            raise RuntimeError("shapes differ")

        return broken

    with pytest.raises(RuntimeError, match="shapes differ"):
        retry_on_out_of_memory(make, MicroBatches())(rough(config), batch(config))
    assert tried == [1]


def test_the_failed_call_s_tensors_are_gone_before_the_next(config, batch):
    import weakref

    alive, seen = [], []

    def make(parts):
        def greedy(params, batch):
            large = torch.zeros(1000)
            seen.append([ref() is not None for ref in alive])
            alive.append(weakref.ref(large))
            if parts < 4:
                raise MemoryError
            return large.sum()

        return greedy

    retry_on_out_of_memory(make, MicroBatches())(None, batch(config, rows=4))
    assert seen == [[], [False], [False, False]]


def test_a_real_allocation_failure_is_survived():
    """The process may grow by 200 MiB: all rows at once need more, four at a time do not."""
    program = """
        import resource
        import torch
        from slm_fn.core.grads import accumulate, value_and_grad
        from slm_fn.train.memory import MicroBatches, retry_on_out_of_memory

        torch.set_num_threads(1)
        params = {"up": torch.randn(8192, 64) / 8, "down": torch.randn(64, 8192) / 90}

        def loss(params, x):
            hidden = (x @ params["up"].T).relu()
            value = (hidden @ params["down"].T).square().mean()
            return value, {"weight": torch.tensor(len(x))}

        x = torch.randn(16, 256, 64)
        vg = value_and_grad(loss)
        (_, _), wanted = vg(params, x)
        num_pages = int(open("/proc/self/statm").read().split()[0])
        held = num_pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + (200 << 20),) * 2)
        try:
            vg(params, x)
            print("no limit")
        except RuntimeError as error:
            print("alone:", error)
        micro_batches = MicroBatches()
        retrying = retry_on_out_of_memory(lambda n: accumulate(n)(vg), micro_batches)
        (_, _), grads = retrying(params, x)
        print(*micro_batches.take_messages(), sep="\\n")
        gaps = [(grads[k] - wanted[k]).norm() / wanted[k].norm() for k in params]
        print("gap", max(gaps).item() < 1e-5)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "alone:" in done.stdout
    assert "out of memory with 16 rows at a time: 8 from here on" in done.stdout
    assert "gap True" in done.stdout


def test_how_backends_say_it():
    said = [
        "CUDA out of memory. Tried to allocate 20.00 GiB",
        "[enforce fail at alloc_cpu.cpp:114] err == 0. "
        "DefaultCPUAllocator: can't allocate memory: you tried to",
        "MPS backend out of memory (MPS allocated: 5.05 GB)",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ]
    assert all(devices.is_out_of_memory(RuntimeError(text)) for text in said)
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not devices.is_out_of_memory(ValueError("out of memory"))
    assert not devices.is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
