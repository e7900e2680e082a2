"""lift/ensemble.py: member e of the lifted step is the step of member e."""

from functools import partial

from slm_fn.core.compose import pipe
from slm_fn.core.grads import value_and_grad
from slm_fn.lift.ensemble import ensemble, member_state, stack_states
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make_optimizer
from slm_fn.train.step import init_state, step_with


def test_a_member_is_what_it_would_be_alone(config, model, rough, batch, gap, same):
    tx = make_optimizer(
        OptimConfig(name="muon", warmup_steps=0, ema_decay=0.9),
        10,
        gpt.matrix_paths(config).__contains__,
    )
    step = pipe(next_token, partial(value_and_grad, engine="func"), step_with(tx))(model)
    members = [init_state(rough(config, key), tx) for key in range(3)]
    states, metrics = ensemble(step)(stack_states(members), batch(config))
    assert metrics["loss"].shape == (3,)
    for e, alone in enumerate(members):
        assert gap(member_state(states, e).params, step(alone, batch(config))[0].params) <= 1e-5


def test_gathered_members_come_apart_again(config, rough, same):
    tx = make_optimizer(OptimConfig(), 10, gpt.matrix_paths(config).__contains__)
    members = [init_state(rough(config, key), tx) for key in range(2)]
    assert all(same(member_state(stack_states(members), e), members[e]) for e in range(2))
