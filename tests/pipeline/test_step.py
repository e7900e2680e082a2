"""Tests of slm_fn.pipeline.step."""

import torch

from slm_fn.core import tree
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig
from slm_fn.pipeline.step import plan
from slm_fn.train.loop import TrainConfig

CPU = torch.device("cpu")


def test_parts_change_no_number(config, rough, batch, gap):
    how = plan(config, next_token, OptimConfig(), TrainConfig(precision="float32"), CPU)
    state, rows = how.begin(rough(config)), batch(config, rows=4)
    whole, told = how.make(1)(state, rows)
    parts, told_too = how.make(4)(state, rows)
    assert gap(parts.params, whole.params) <= 1e-5
    assert gap(told_too, told) <= 1e-5


def test_the_step_is_the_config_s(config, batch):
    how = plan(config, next_token, OptimConfig(ema_decay=0.9), TrainConfig(accumulate=2), CPU)
    state = how.begin(gpt.init(config, key=0))
    after, told = how.step(state, batch(config, rows=4))
    assert after.step == 1
    assert set(told) == {"loss", "grad_norm", "weight"}
    assert tree.paths(after).keys() == tree.paths(state).keys()
