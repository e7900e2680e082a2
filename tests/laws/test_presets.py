"""Laws of the presets: the stated size is right, the loss starts at ln V, every stage runs."""

import math
import re
from functools import partial

import msgspec
import pytest
import torch

from slm_fn import config as configs
from slm_fn.core import random, tree
from slm_fn.core.types import LMBatch, PairBatch
from slm_fn.loss.lm import next_token
from slm_fn.loss.preference import dpo, reference_from_batch
from slm_fn.nn import gpt
from slm_fn.pipeline.training.plan import make_plan

NAMES = configs.presets(configs.Config)
SMALL = {"tiny", "atomic", "experimental"}
"""Small enough to test in full; the others are reduced here and run in full by slow tests."""


def shape_of(name):
    """The model with its tokenizer's vocabulary: printable ASCII and specials for characters."""
    config = configs.load(name)
    size = 105 if config.tokenizer.kind == "char" else config.tokenizer.vocab_size
    return msgspec.structs.replace(config.model, vocab_size=config.model.vocab_size or size)


def rows_of(shape, rows=2, length=24):
    tokens = (random.uniform(1, (rows, length + 1)) * shape.vocab_size).long()
    return LMBatch(tokens, torch.ones(rows, length))


def test_the_presets_exist():
    assert {"tiny", "pico", "nano", "experimental", "definitely", "atomic", "base"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_states_the_number_of_parameters(name):
    stated = re.match(r"# ([\d.]+)M parameters", configs.find(name).read_text(encoding="utf-8"))
    assert stated, f"configs/{name}.yaml begins with: # <millions>M parameters"
    assert (
        abs(gpt.count_params(shape_of(name)) / 1e6 - float(stated[1]))
        < 0.5 * 10.0 ** -len(stated[1].partition(".")[2]) + 0.01
    )


@pytest.mark.parametrize("name", NAMES)
def test_batches_divide_into_micro_batches(name):
    config = configs.load(name)
    for stage in (config.pretrain, config.sft, config.dpo):
        assert stage.train.batch_size % stage.train.accumulate == 0
        assert stage.optim.warmup_steps < stage.train.total_steps


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_model_predicts_uniformly(name):
    shape = msgspec.structs.replace(shape_of(name), num_layers=1)  # a fresh block is the identity
    loss, _ = next_token(partial(gpt.apply, shape))(
        gpt.init(shape, key=3), rows_of(shape, rows=4, length=64)
    )
    assert abs(loss / math.log(shape.vocab_size) - 1) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - SMALL))
def test_a_large_model_takes_a_step_of_every_stage(name):
    take_steps(name, shape_of(name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"base"}))
def test_every_stage_takes_a_step(name):
    shape = shape_of(name)
    take_steps(
        name,
        shape if name in SMALL else msgspec.structs.replace(shape, num_layers=1, vocab_size=512),
    )


def take_steps(name, shape):
    config = configs.load(name)
    rows = rows_of(shape)
    pairs = PairBatch(
        rows,
        rows._replace(tokens=rows.tokens.flip(0)),
        torch.full((2, 2), -24 * math.log(shape.vocab_size)),
    )
    objective = dpo(reference_from_batch, config.dpo.beta, config.dpo.nll_weight)
    stages = [
        (config.pretrain, next_token, rows),
        (config.sft, next_token, rows),
        (config.dpo, objective, pairs),
    ]
    fresh = gpt.init(shape, key=3)
    for stage, wanted, given in stages:
        settings = msgspec.structs.replace(
            stage.train, batch_size=2, accumulate=1, engine="eager", precision="float32"
        )
        plan = make_plan(shape, wanted, stage.optim, settings)
        state, metrics = plan.step(
            plan.init_state(fresh), plan.batches(lambda _, given=given: given)(0)
        )
        assert math.isfinite(metrics["loss"])
        moved = tree.map(lambda a, b: bool((a != b).any()), state.params, fresh)
        assert moved["embed"]
        assert moved["blocks"]["ffn"]["down"]
