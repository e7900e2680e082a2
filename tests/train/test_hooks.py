"""train/hooks.py: hooks named in a config report the activations of the state they observe."""

import msgspec
import torch

from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate
from slm_fn.core.types import TrainState
from slm_fn.lift import taps
from slm_fn.loss.lm import next_token
from slm_fn.train import hooks
from slm_fn.train.hooks import HookConfig


def test_an_observer_tells_the_activations_of_its_state(model, config, rough, batch):
    params, rows = rough(config), batch(config)
    objective = taps.with_activation_stats(["rms"], ["*/ffn", "final"])(next_token)
    observe = hooks.observer(pipe(objective, taps.value_only, accumulate(2))(model))
    told = observe(TrainState(params, (), torch.tensor(0)), rows._replace(mask=torch.ones(4, 12)))
    assert list(told) == ["acts/0/ffn/rms", "acts/1/ffn/rms", "acts/final/rms"]
    _, acts = taps.with_activations(model)(params, rows.tokens[:, :-1])
    halves = [half.square().mean().sqrt() for half in acts["1/ffn"].split(2)]
    torch.testing.assert_close(told["acts/1/ffn/rms"], torch.stack(halves).mean())


def test_a_config_names_hooks_and_is_off_by_default():
    assert hooks.hook_names(HookConfig()) == ()
    config = msgspec.convert({"forward": ["mean", "zeros"], "taps": ["final"]}, HookConfig)
    assert hooks.hook_names(config, ("update_ratio",)) == (
        "forward/final/mean",
        "forward/final/zeros",
        "update/update_ratio",
    )
