"""Laws of every optimizer and its step. A new one joins OPTIMIZERS and must satisfy all of them."""

from functools import partial

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.lift.ensemble import ensemble, stack_states
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim import recipes, transforms
from slm_fn.optim.combine import apply_updates
from slm_fn.optim.recipes import OptimConfig
from slm_fn.train.step import init_state, step_with

CONFIG = gpt.ModelConfig(
    vocab_size=48,
    dim=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    ffn_dim=48,
    context=16,
    tied=False,
    qk_norm=True,
)
LOSS = next_token(partial(gpt.apply, CONFIG))
# For tests that compile a full step, since tracing is slow.
SHALLOW = msgspec.structs.replace(CONFIG, num_layers=1)
MATRIX = gpt.matrix_paths(CONFIG).__contains__
RECIPE = partial(OptimConfig, learning_rate=3e-3, warmup_steps=2)
OPTIMIZERS = {
    name: recipes.make_optimizer(config, 20, MATRIX)
    for name, config in {
        "adamw": RECIPE(),
        "muon": RECIPE(name="muon"),
        "lion": RECIPE(
            name="lion", learning_rate=1e-3, schedule="constant", weight_decay=0.0, clip=0.0
        ),
        "sgd": RECIPE(name="sgd", learning_rate=0.05, schedule="onecycle", spike_factor=9.0),
        "adafactor": RECIPE(name="adafactor", measures=("grad_norms", "update_ratio")),
        "adafactor-relative": RECIPE(
            name="adafactor", schedule="linear", learning_rate=0.1, relative=1e-3, b1=0.0
        ),
        "adamw-wsd-ema": RECIPE(schedule="wsd", ema_decay=0.9),
    }.items()
}


@pytest.fixture(params=OPTIMIZERS)
def tx(request):
    return OPTIMIZERS[request.param]


@pytest.fixture
def stream(batch):
    return [batch(CONFIG, rows=4, length=10, key=key) for key in range(4)]


def run_steps(step, state, stream):
    for state, metrics in run(step, state, stream):
        pass
    return state, metrics


def test_a_step_is_a_pure_function(tx, stream, rough, same, purely):
    step, state = pipe(value_and_grad, step_with(tx))(LOSS), init_state(rough(CONFIG), tx)
    copy = tree.map(torch.clone, state)
    once = purely(step, state, stream[0])
    assert same(copy, state)
    assert same(once, step(state, stream[0]))
    assert not same(once[0].params, state.params)


def test_steps_reduce_the_loss(tx, stream, rough):
    state, metrics = run_steps(
        pipe(value_and_grad, step_with(tx))(LOSS), init_state(rough(CONFIG), tx), stream[:1] * 15
    )
    assert metrics["loss"] < 0.8 * LOSS(rough(CONFIG), stream[0])[0]
    assert state.step == 15


def test_the_state_keeps_its_shape(tx, stream, rough):
    # Saving, sharding and compiling rely on the tree: no step may change paths, shapes or dtypes.
    first = init_state(rough(CONFIG), tx)
    last, _ = run_steps(pipe(value_and_grad, step_with(tx))(LOSS), first, stream)
    layouts = [
        {path: (x.shape, x.dtype) for path, x in tree.named_leaves(state).items()}
        for state in (first, last)
    ]
    assert layouts[0] == layouts[1]
    assert list(layouts[0]) == list(layouts[1])


def test_a_state_rebuilt_from_its_paths_continues_bitwise(tx, stream, rough, same):
    step = pipe(value_and_grad, step_with(tx))(LOSS)
    middle, _ = run_steps(step, init_state(rough(CONFIG), tx), stream[:2])
    saved = {path: x.clone() for path, x in tree.named_leaves(middle).items()}
    restored = tree.from_named_leaves(init_state(gpt.init(CONFIG, key=77), tx), saved)
    assert same(run_steps(step, restored, stream[2:]), run_steps(step, middle, stream[2:]))


def test_an_ensemble_equals_its_members(tx, stream, rough, gap):
    step = pipe(partial(value_and_grad, engine="func"), step_with(tx))(LOSS)
    members = [init_state(rough(CONFIG, key), tx) for key in range(3)]
    together = run_steps(torch.func.vmap(step, in_dims=(0, None)), tree.stack(*members), stream)
    for one, member in zip(tree.unstack(together), members, strict=True):
        assert gap(one, run_steps(step, member, stream)) <= 1e-5


def test_members_with_different_batches_equal_separate_runs(tx, stream, rough, gap):
    step = pipe(partial(value_and_grad, engine="func"), step_with(tx))(LOSS)
    state = init_state(rough(CONFIG), tx)
    together = torch.func.vmap(step, in_dims=(None, 0))(state, tree.stack(*stream))
    for one, rows in zip(tree.unstack(together), stream, strict=True):
        assert gap(one, step(state, rows)) <= 1e-5


def test_a_member_that_fails_does_not_stop_the_others(tx, stream, rough, same):
    step = pipe(partial(value_and_grad, engine="func"), step_with(tx))(LOSS)
    members = [init_state(rough(CONFIG, key), tx) for key in range(2)]
    members[0].params["norm"][3] = torch.nan
    after, _ = torch.func.vmap(step, in_dims=(0, None))(tree.stack(*members), stream[0])
    broken, healthy = tree.unstack(after)
    assert same(broken.params, members[0].params)
    assert not same(healthy.params, members[1].params)
    assert [one.opt_state.skipped.item() for one in (broken, healthy)] == [1, 0]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_nonfinite_gradient_changes_only_counters(tx, stream, rough, same, poison):
    def poisoned_loss(params, rows):
        value, aux = LOSS(params, rows)
        return value + poison * params["norm"][0] * rows.mask[0, 0], aux

    step = pipe(value_and_grad, step_with(tx))
    before, _ = run_steps(step(LOSS), init_state(rough(CONFIG), tx), stream[:2])
    before.params["blocks"]["attn"]["q"][0, 0, :2] = torch.tensor([0.0, -0.0])
    after, metrics = step(poisoned_loss)(before, stream[2])
    assert not torch.isfinite(metrics["grad_norm"])
    assert same(after.params, before.params)
    assert same(after.opt_state.inner, before.opt_state.inner)
    assert (after.step - before.step, after.opt_state.skipped - before.opt_state.skipped) == (1, 1)

    continued = step(LOSS)(after, stream[3])[0]
    expected = step(LOSS)(before, stream[3])[0]
    assert same(continued.params, expected.params)
    assert same(continued.opt_state.inner, expected.opt_state.inner)
    assert not same(continued.params, after.params)


def test_accumulated_steps_equal_full_batch_steps(tx, stream, rough, gap):
    full = pipe(value_and_grad, step_with(tx))(LOSS)
    accumulated = pipe(value_and_grad, accumulate(2), step_with(tx))(LOSS)
    state = init_state(rough(CONFIG), tx)
    # The gradients agree to 1e-6; Adam's first step divides them by their magnitude.
    assert gap(accumulated(state, stream[0])[0].params, full(state, stream[0])[0].params) <= 1e-5


@pytest.mark.parametrize("name", ["adamw-wsd-ema", "muon", "lion", "sgd", "adafactor"])
def test_a_compiled_update_equals_the_eager_one(name, no_shape_checks, gap):
    # Two leaves instead of the model's thirteen: the transform is under test, and tracing is slow.
    tx = OPTIMIZERS[name]

    def draw(key):
        shapes = {"blocks": {"ffn": {"up": (2, 6, 4)}}, "norm": (4,)}
        return tree.map_with_path(
            shapes, lambda path, shape: random.normal(random.fold_in(key, path), shape)
        )

    def move(grads, opt_state, params):
        updates, opt_state = tx.update(grads, opt_state, params)
        return opt_state, apply_updates(params, updates)

    compiled = torch.compile(move, backend="aot_eager", fullgraph=True)
    # Cloned as in `init_state`: for a state with shared leaves the compiler would specialise, and
    # compile again for the next state.
    one = two = (tree.map(torch.clone, tx.init(draw(0))), draw(0))
    for key in (1, 2):
        one, two = move(draw(key), *one), compiled(draw(key), *two)
    # Muon amplifies small singular values together with their rounding errors.
    assert gap(two, one) <= (1e-4 if name == "muon" else 1e-5)


def test_a_sweep_equals_separate_runs(stream, rough, gap):
    rates, decays = (1e-3, 3e-3, 1e-2), (0.0, 0.1, 0.1)

    def start_runs(hyperparams_in_state):
        configs = [
            RECIPE(name="muon", learning_rate=r, weight_decay=d)
            for r, d in zip(rates, decays, strict=True)
        ]
        recipe = [
            recipes.make_optimizer(config, 20, MATRIX, hyperparams_in_state=hyperparams_in_state)
            for config in configs
        ]
        return recipe, [init_state(rough(CONFIG), tx) for tx in recipe]

    (any_one, *_), members = start_runs(hyperparams_in_state=True)
    lift = pipe(partial(value_and_grad, engine="func"), step_with(any_one))
    together = run_steps(ensemble(lift(LOSS)), stack_states(members), stream)
    for e, (tx, state) in enumerate(zip(*start_runs(hyperparams_in_state=False), strict=True)):
        alone, metrics = run_steps(pipe(value_and_grad, step_with(tx))(LOSS), state, stream)
        assert gap(tree.map(lambda leaf, e=e: leaf[e], together[0].params), alone.params) <= 1e-5
        assert together[1]["loss"][e] == pytest.approx(metrics["loss"].item(), rel=1e-5)
        rate = transforms.find_state(alone.opt_state, transforms.ScheduleState).rate
        assert transforms.find_state(together[0].opt_state, transforms.ScheduleState).rate[
            e
        ] == pytest.approx(rate.item())


# The warning comes from Dynamo itself.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_step_equals_the_eager_one(stream, rough, no_shape_checks, gap):
    tx, loss = OPTIMIZERS["adamw-wsd-ema"], next_token(partial(gpt.apply, SHALLOW))
    step = pipe(partial(value_and_grad, engine="func"), step_with(tx))(loss)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    state = init_state(rough(SHALLOW), tx)
    assert gap(run_steps(compiled, state, stream[:2]), run_steps(step, state, stream[:2])) <= 1e-5


def test_a_compiled_ensemble_step_equals_the_eager_one(stream, rough, no_shape_checks, gap):
    # Dynamo has no vmap rule for an autograd.Function, hence the loss without chunks.
    tx, loss = OPTIMIZERS["adamw"], next_token(partial(gpt.apply, SHALLOW), chunked=False)
    step = torch.func.vmap(
        pipe(partial(value_and_grad, engine="func"), step_with(tx))(loss), in_dims=(0, None)
    )
    states = tree.stack(*(init_state(rough(SHALLOW, key), tx) for key in range(2)))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert gap(compiled(states, stream[0]), step(states, stream[0])) <= 1e-5
