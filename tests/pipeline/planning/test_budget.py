"""What a config costs: parts that add up, memory as it is, and placements that fit."""

import os
import subprocess
import sys
import textwrap

import pytest

from slm_fn import config as configs
from slm_fn.nn import gpt
from slm_fn.pipeline.planning import budget, step_memory
from slm_fn.pipeline.planning.budget import MIB

SMALL = [
    f"model.{key}"
    for key in ("num_layers=1", "dim=64", "num_heads=2", "num_kv_heads=2", "ffn_dim=128")
]


def load(*items):
    return configs.load("tiny", [*SMALL, "tokenizer.vocab_size=256", "model.context=64", *items])


def plan(*items, devices=1, gib=8.0, tflops=1.0):
    return budget.budget(load(*items), "cpu", devices, gib, tflops)


def memory_of(*items):
    return step_memory.StepMemory(budget.with_vocabulary(load(*items)), "bfloat16", True, 600)


@pytest.fixture(scope="module")
def spread():
    return plan(devices=4)


def test_the_parts_add_up(spread):
    shape = budget.with_vocabulary(load()).model
    assert sum(spread.params_by_part.values()) == spread.params == gpt.count_params(shape)
    assert spread.params_by_part == {
        "embed": 256 * 64,
        "attention": 4 * 64 * 64,
        "ffn": 3 * 64 * 128,
        "norms": 2 * 64 + 64 + 2 * 32,
    }
    assert spread.flops_per_token == gpt.train_flops_per_token(shape, 64)
    assert spread.serve_weights_mib["bfloat16"] == spread.params * 2 / MIB
    assert spread.kv_cache_mib_per_row["bfloat16"] == 2 * 64 * 64 * 2 / MIB
    assert (
        budget._model_figures(budget.with_vocabulary(load("model.tied=false")))["params_by_part"][
            "head"
        ]
        == 256 * 64
    )


def test_the_optimizer_is_the_config_s():
    params, adam = memory_of("pretrain.optim.name=adamw").state_bytes()
    assert adam == pytest.approx(2 * params, rel=0.01)
    assert memory_of("pretrain.optim.name=adamw", "pretrain.optim.ema_decay=0.99").state_bytes()[
        1
    ] == pytest.approx(3 * params, rel=0.01)
    assert memory_of().state_bytes()[1] < adam  # muon keeps one moment of matrices


def test_more_rows_hold_more_and_remat_less():
    many = memory_of("model.num_layers=3", "pretrain.train.batch_size=64")
    assert many.peak(64, False) > 3 * many.peak(16, False)
    assert many.peak(64, True) < 0.75 * many.peak(64, False)
    assert many.peak(24, False) == pytest.approx(
        many.measure(24, False).peak_bytes, rel=0.1
    )  # it lies on the line


def test_the_simplest_placement_that_fits_is_taken(spread):
    assert spread.recommended.where == "replicate"
    assert [placement.devices for placement in spread.placements] == [1, 4, 4, 4]
    large = memory_of("pretrain.train.batch_size=64")
    enough = large.memory_mib("one device", 1, 16, 4, False) / budget.MAX_FILL
    (found,) = budget._placements(large, 1, enough * 1.001, 1.0)
    assert (found.rows_at_a_time, found.remat, found.fits) == (16, False, True)
    assert found.settings == ["pretrain.train.accumulate=4"]
    (found,) = budget._placements(
        large, 1, 600.0, 1.0
    )  # the context of an accelerator alone is more
    assert not found.fits
    assert "pretrain.train.remat=true" in found.settings


def test_sharding_holds_a_part_of_what_stays():
    some = memory_of()
    params, optimizer = some.state_bytes()
    alone, shared, split = (
        some.memory_mib(where, 4, 1, 1, False)
        for where in ("replicate", "shard", "tensor parallel")
    )
    assert (alone - shared) / step_memory.ACCELERATOR_OVERHEAD == pytest.approx(
        (optimizer * 3 / 4 - params / 4) / MIB, rel=1e-3
    )
    assert split < shared


def test_time_is_tokens_over_speed(spread):
    assert spread.tokens == 900 * 8 * 64
    assert spread.tok_per_s == pytest.approx(
        budget.USUAL_MATMUL_SHARE * 1e12 / spread.flops_per_token
    )
    hours = {placement.where: placement.hours for placement in spread.placements}
    assert hours["replicate"] == pytest.approx(spread.hours / 4)


def test_numbers_that_are_none():
    for wrong in ({"devices": 0}, {"gib": -1.0}, {"tflops": 0.0}):
        with pytest.raises(ValueError, match="above zero"):
            plan(**wrong)


PROGRAM = """
    import torch
    from slm_fn.bench.train import benchmark
    from slm_fn.core import device as devices, host
    from slm_fn.core.types import LMBatch
    from slm_fn.loss.lm import next_token
    from slm_fn.nn import gpt
    from slm_fn.pipeline.planning import budget, step_memory
    from slm_fn.pipeline.training.distributed import DistributedContext
    from slm_fn.pipeline.training.plan import make_plan
    import msgspec

    torch.set_num_threads(1)
    host.keep_freed_memory = lambda: False
    changes = dict(engine="eager", precision="float32", batch_size={rows})
    config = benchmark.resolve_config({name!r}, {items!r}, **changes)
    memory = step_memory.StepMemory(config, "float32", False, 0)
    guess = memory.peak({rows}, config.pretrain.train.remat)
    shape, settings, cpu = config.model, config.pretrain.train, torch.device("cpu")
    optim, dist = config.pretrain.optim, DistributedContext(cpu)
    training = make_plan(shape, next_token, optim, settings, dist)
    before = devices.peak_memory(cpu)
    state = training.init_state(gpt.init(shape, 0))
    tokens = torch.randint(0, shape.vocab_size, ({rows}, shape.context + 1))
    for _ in range(2):
        state, _ = training.step(state, LMBatch(tokens, torch.ones({rows}, shape.context)))
    print(guess / (devices.peak_memory(cpu) - before))
"""


def ratio(name, rows, *items):
    """Guessed over real memory, where the C library gives every block pages of its own."""
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    program = textwrap.dedent(PROGRAM).format(name=name, rows=rows, items=list(items))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_memory_is_what_training_takes():
    assert 0.8 < ratio("tiny", 4, "model.num_layers=2") < 1.2


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["true", "false"])
@pytest.mark.parametrize(("name", "rows"), [("tiny", 16), (None, 8), (None, 32)])
def test_memory_is_what_training_takes_at_full_size(name, rows, remat):
    assert 0.8 < ratio(name, rows, f"pretrain.train.remat={remat}") < 1.2
