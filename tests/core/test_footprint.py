"""The footprint of a function is the memory that its real run holds."""

import os
import subprocess
import sys
import textwrap

import torch

from slm_fn.core import tree
from slm_fn.core.footprint import Footprint, measure_footprint, num_bytes
from slm_fn.core.grads import remat, value_and_grad

KIB = 256  # floats


def test_what_is_dropped_is_not_held():
    def chain(x):
        for _ in range(10):
            x = x + 1
        return x

    # the argument, one sum and the next
    assert measure_footprint(chain, lambda: (torch.zeros(KIB),)) == Footprint(1024, 1024, 3 * 1024)


def test_views_and_results_in_place_cost_nothing():
    measured = measure_footprint(
        lambda x: x.view(2, -1).t().add_(1)[0], lambda: (torch.zeros(KIB),)
    )
    assert measured == Footprint(1024, 1024, 1024)


def test_what_the_backward_pass_needs_is_held_till_then():
    def layer(x, w):
        return torch.tanh(torch.tanh(torch.tanh(x * w)))

    def peak(layer):
        def loss(params, x):
            for _ in range(8):
                x = layer(x, params["w"])
            return x.sum(), {"weight": torch.ones(())}

        return measure_footprint(
            value_and_grad(loss), lambda: ({"w": torch.zeros(KIB)}, torch.zeros(KIB))
        ).peak_bytes

    # Two arguments and the output of every tanh; with remat, the outputs of eight layers and the
    # three of one layer.
    assert (2 + 24) * 1024 <= peak(layer) < (2 + 24 + 4) * 1024
    assert (2 + 8 + 2) * 1024 <= peak(remat(layer)) < (2 + 8 + 2 + 6) * 1024


def test_nothing_is_computed_so_nothing_is_too_large():
    measured = measure_footprint(lambda x: x @ x, lambda: (torch.zeros(1 << 20, 1 << 20),))
    assert measured.peak_bytes == 2 * (4 << 40)


def test_a_storage_counts_once():
    x = torch.zeros(10)
    assert num_bytes({"a": x, "b": x[:2], "c": torch.zeros(5)}) == 60


def test_it_is_what_a_process_really_takes():
    """Blocks of some size get pages of their own, so that gaps in the heap do not count."""
    program = """
        import torch
        from slm_fn.core import device as devices
        from slm_fn.core.footprint import measure_footprint
        from slm_fn.core.grads import value_and_grad

        torch.set_num_threads(1)

        def loss(params, x):
            for w in params["w"].unbind(0):
                x = x + (x @ w).relu()
            return x.square().mean(), {"weight": torch.ones(())}

        def make(like=torch.zeros):
            return {"w": like(6, 512, 512) / 512}, like(4096, 512)

        guess = measure_footprint(value_and_grad(loss), make)
        before = devices.peak_memory(torch.device("cpu"))
        value_and_grad(loss)(*make(torch.rand))
        print(guess.peak_bytes / (devices.peak_memory(torch.device("cpu")) - before))
    """
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    assert 0.8 < float(done.stdout) < 1.2


def test_nothing_leaks_into_the_world(config, rough):
    before = tree.map(torch.clone, rough(config))
    measure_footprint(lambda p: p["norm"] * 2, lambda: (tree.map(torch.empty_like, before),))
    assert type(torch.zeros(1)) is torch.Tensor
