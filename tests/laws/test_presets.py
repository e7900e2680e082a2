"""Laws of the presets: each is as big as it says, starts at ln V, and takes a step of every stage."""

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
from slm_fn.loss.preference import dpo, recorded
from slm_fn.nn import gpt
from slm_fn.pipeline.step import plan

NAMES = configs.presets(configs.Config)
WHOLE = {"tiny", "atomic", "experimental"}
"""Quick enough on a busy core. Of the others a layer and few tokens; all of them slowly."""


def shape_of(name):
    """The model with as many tokens as its tokenizer will have: for characters, printable ASCII and control tokens."""
    config = configs.load(name)
    size = 105 if config.tokenizer.kind == "char" else config.tokenizer.vocab_size
    return msgspec.structs.replace(config.model, vocab_size=config.model.vocab_size or size)


def rows_of(shape, rows=2, length=24):
    tokens = (random.uniform(1, (rows, length + 1)) * shape.vocab_size).long()
    return LMBatch(tokens, torch.ones(rows, length))


def test_the_family_is_there():
    assert {"tiny", "pico", "nano", "experimental", "definitely", "atomic", "base"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_says_how_big_it_is(name):
    told = re.match(r"# ([\d.]+)M parameters", configs.find(name).read_text(encoding="utf-8"))
    assert told, f"configs/{name}.yaml begins with: # <millions>M parameters"
    assert abs(gpt.count(shape_of(name)) / 1e6 - float(told[1])) < 0.5 * 10.0 ** -len(told[1].partition(".")[2]) + 0.01


@pytest.mark.parametrize("name", NAMES)
def test_batches_divide_into_their_parts(name):
    config = configs.load(name)
    for stage in (config.pretrain, config.sft, config.dpo):
        assert stage.train.batch_size % stage.train.accumulate == 0
        assert stage.optim.warmup_steps < stage.train.total_steps


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_one_knows_nothing(name):
    shape = msgspec.structs.replace(shape_of(name), num_layers=1)  # a fresh block is the identity
    loss, _ = next_token(partial(gpt.apply, shape))(gpt.init(shape, key=3), rows_of(shape, rows=4, length=64))
    assert abs(loss / math.log(shape.vocab_size) - 1) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(NAMES) - WHOLE))
def test_a_large_one_takes_its_steps(name):
    take_steps(name, shape_of(name))


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"base"}))
def test_every_stage_takes_a_step(name):
    shape = shape_of(name)
    take_steps(name, shape if name in WHOLE else msgspec.structs.replace(shape, num_layers=1, vocab_size=512))


def take_steps(name, shape):
    config = configs.load(name)
    rows = rows_of(shape)
    pairs = PairBatch(
        rows, rows._replace(tokens=rows.tokens.flip(0)), torch.full((2, 2), -24 * math.log(shape.vocab_size))
    )
    objective = dpo(recorded, config.dpo.beta, config.dpo.nll_weight)
    stages = [(config.pretrain, next_token, rows), (config.sft, next_token, rows), (config.dpo, objective, pairs)]
    fresh = gpt.init(shape, key=3)
    for stage, wanted, given in stages:
        settings = msgspec.structs.replace(stage.train, batch_size=2, accumulate=1, engine="eager", precision="float32")
        how = plan(shape, wanted, stage.optim, settings)
        state, metrics = how.step(how.begin(fresh), how.batches(lambda _, given=given: given)(0))
        assert math.isfinite(metrics["loss"])
        moved = tree.map(lambda a, b: bool((a != b).any()), state.params, fresh)
        assert moved["embed"]
        assert moved["blocks"]["ffn"]["down"]
