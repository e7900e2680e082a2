"""train/step.py: counts, metrics and the update by hand; its laws are in test_optimizers.py."""

import torch

from slm_fn.core import tree
from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.loss.lm import next_token
from slm_fn.optim import combine, schedules, transforms
from slm_fn.optim.recipes import OptimConfig, make_optimizer
from slm_fn.train.step import eval_params, init_state, step_with


def squared(params, batch):
    return (params["w"] - batch).square().mean(), {
        "weight": torch.tensor(float(batch.numel())),
        "seen": batch.mean(),
    }


SGD = transforms.scale_by_learning_rate(schedules.constant(0.25))


def test_one_step_by_hand(purely):
    start = init_state({"w": torch.zeros(2)}, SGD)
    assert start.step == 0
    assert start.step.dtype == torch.long
    state, metrics = purely(
        pipe(value_and_grad, step_with(SGD))(squared), start, torch.tensor([4.0, 8.0])
    )
    assert state.params["w"].tolist() == [1.0, 2.0]
    assert state.step == 1
    assert {name: x.item() for name, x in metrics.items()} == {
        "loss": 40.0,
        "grad_norm": torch.tensor([4.0, 8.0]).norm().item(),
        "weight": 2.0,
        "seen": 6.0,
    }
    assert start.params["w"].tolist() == [0.0, 0.0]


def test_the_norm_reported_is_the_one_before_clipping():
    tx = combine.chain(transforms.clip_by_global_norm(1e-3), SGD)
    state, metrics = pipe(value_and_grad, step_with(tx))(squared)(
        init_state({"w": torch.zeros(1)}, tx), torch.ones(1)
    )
    assert metrics["grad_norm"] == 2.0
    assert abs(state.params["w"].item() - 0.25e-3) < 1e-9


def test_a_trainer_is_one_sentence(config, rough, batch, model):
    tx = make_optimizer(
        OptimConfig(learning_rate=1e-2, warmup_steps=2),
        12,
        lambda path: path.startswith("blocks/ffn/"),
    )
    step = pipe(next_token, value_and_grad, accumulate(2), step_with(tx))(model)
    losses = [
        m["loss"].item() for _, m in run(step, init_state(rough(config), tx), [batch(config)] * 12)
    ]
    assert losses[-1] < 0.6 * losses[0]


def test_metrics_carry_no_graph(config, rough, batch, model):
    for engine in ("autograd", "func"):
        step = step_with(SGD)(value_and_grad(next_token(model), engine))
        state, metrics = step(init_state(rough(config), SGD), batch(config))
        assert not any(x.requires_grad for x in (*metrics.values(), state.params["embed"]))


def test_the_averaged_parameters_are_evaluated():
    tx = make_optimizer(OptimConfig(ema_decay=0.9), 10, lambda path: path == "w")
    state = init_state({"w": torch.ones(2)}, tx)
    state = state._replace(params=tree.map(lambda w: w * 2, state.params))
    assert torch.equal(eval_params(state)["w"], torch.ones(2))
    assert eval_params(init_state({"w": torch.zeros(2)}, SGD))["w"].tolist() == [0.0, 0.0]
