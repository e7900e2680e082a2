"""train/skips.py: how many steps in a row were skipped, and the error that says what to do."""

import torch

from slm_fn.core.compose import pipe
from slm_fn.core.grads import value_and_grad
from slm_fn.optim import recipes, schedules, transforms
from slm_fn.train import skips
from slm_fn.train.step import init_state, step_with


def loss(params, x):
    return (params["w"] - x).square().sum(), {"weight": torch.tensor(1.0)}


def test_skipped_steps_are_counted_until_one_is_taken():
    tx = recipes.make_optimizer(recipes.OptimConfig(warmup_steps=0), 10, lambda path: True)
    step = pipe(value_and_grad, step_with(tx))(loss)
    state = init_state({"w": torch.zeros(2)}, tx)
    counts = []
    for value in (1.0, float("nan"), float("inf"), 1.0):
        state, _ = step(state, torch.full((2,), value))
        counts.append(skips.num_skipped_in_a_row(state))
    assert counts == [0, 1, 2, 0]


def test_an_optimizer_that_skips_nothing_has_skipped_none():
    tx = transforms.scale_by_learning_rate(schedules.constant(0.1))
    assert skips.num_skipped_in_a_row(init_state({"w": torch.zeros(2)}, tx)) == 0


def test_the_message_names_the_settings_to_change():
    message = skips.divergence_message(7, 4)
    assert message.startswith("step 7: the last 4 steps were skipped")
    for setting in ("optim.learning_rate", "optim.warmup_steps", "train.precision"):
        assert setting in message
