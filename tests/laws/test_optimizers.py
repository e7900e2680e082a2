"""Laws of every optimizer and its step. A new one joins OPTIMIZERS in one line and is held to all of them."""

from functools import partial

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.lift.ensemble import ensemble, gather
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim import recipes, transforms
from slm_fn.optim.combine import apply_updates
from slm_fn.optim.recipes import OptimConfig
from slm_fn.train.step import init_state, step_with

CONFIG = gpt.ModelConfig(
    vocab_size=48, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, context=16, tied=False, qk_norm=True
)
LOSS = next_token(partial(gpt.apply, CONFIG))
SHALLOW = msgspec.structs.replace(CONFIG, num_layers=1)  # what is compiled whole: tracing takes its time
MATRIX = gpt.matrices(CONFIG).__contains__
RECIPE = partial(OptimConfig, learning_rate=3e-3, warmup_steps=2)
OPTIMIZERS = {
    name: recipes.make(config, 20, MATRIX)
    for name, config in {
        "adamw": RECIPE(),
        "muon": RECIPE(name="muon"),
        "lion": RECIPE(name="lion", learning_rate=1e-3, schedule="constant", weight_decay=0.0, clip=0.0),
        "sgd": RECIPE(name="sgd", learning_rate=0.05, schedule="onecycle", spike_factor=9.0),
        "adafactor": RECIPE(name="adafactor", measures=("grad_norms", "update_ratio")),
        "adafactor-relative": RECIPE(name="adafactor", schedule="linear", learning_rate=0.1, relative=1e-3, b1=0.0),
        "adamw-wsd-ema": RECIPE(schedule="wsd", ema_decay=0.9),
    }.items()
}


@pytest.fixture(params=OPTIMIZERS)
def tx(request):
    return OPTIMIZERS[request.param]


@pytest.fixture
def stream(batch):
    return [batch(CONFIG, rows=4, length=10, key=key) for key in range(4)]


def walk(step, state, stream):
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


def test_steps_learn(tx, stream, rough):
    state, metrics = walk(pipe(value_and_grad, step_with(tx))(LOSS), init_state(rough(CONFIG), tx), stream[:1] * 15)
    assert metrics["loss"] < 0.8 * LOSS(rough(CONFIG), stream[0])[0]
    assert state.step == 15


def test_the_state_keeps_its_shape(tx, stream, rough):
    # What is saved, sharded and compiled is the tree: no step may change its paths, shapes or dtypes.
    first = init_state(rough(CONFIG), tx)
    last, _ = walk(pipe(value_and_grad, step_with(tx))(LOSS), first, stream)
    told = [{path: (x.shape, x.dtype) for path, x in tree.paths(state).items()} for state in (first, last)]
    assert told[0] == told[1]
    assert list(told[0]) == list(told[1])


def test_a_state_rebuilt_from_its_paths_goes_on_bitwise(tx, stream, rough, same):
    step = pipe(value_and_grad, step_with(tx))(LOSS)
    middle, _ = walk(step, init_state(rough(CONFIG), tx), stream[:2])
    saved = {path: x.clone() for path, x in tree.paths(middle).items()}
    restored = tree.from_paths(init_state(gpt.init(CONFIG, key=77), tx), saved)
    assert same(walk(step, restored, stream[2:]), walk(step, middle, stream[2:]))


def test_an_ensemble_is_its_members(tx, stream, rough, gap):
    step = pipe(partial(value_and_grad, engine="func"), step_with(tx))(LOSS)
    members = [init_state(rough(CONFIG, key), tx) for key in range(3)]
    together = walk(torch.func.vmap(step, in_dims=(0, None)), tree.stack(*members), stream)
    for one, member in zip(tree.unstack(together), members, strict=True):
        assert gap(one, walk(step, member, stream)) <= 1e-5


def test_members_with_their_own_batches_are_their_own_runs(tx, stream, rough, gap):
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
    broken, sound = tree.unstack(after)
    assert same(broken.params, members[0].params)
    assert not same(sound.params, members[1].params)
    assert [one.opt_state.skipped.item() for one in (broken, sound)] == [1, 0]


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_nonfinite_gradient_moves_nothing_but_counters(tx, stream, rough, same, poison):
    def spoilt(params, rows):
        value, aux = LOSS(params, rows)
        return value + poison * params["norm"][0] * rows.mask[0, 0], aux

    step = pipe(value_and_grad, step_with(tx))
    before, _ = walk(step(LOSS), init_state(rough(CONFIG), tx), stream[:2])
    before.params["blocks"]["attn"]["q"][0, 0, :2] = torch.tensor([0.0, -0.0])
    after, metrics = step(spoilt)(before, stream[2])
    assert not torch.isfinite(metrics["grad_norm"])
    assert same(after.params, before.params)
    assert same(after.opt_state.inner, before.opt_state.inner)
    assert (after.step - before.step, after.opt_state.skipped - before.opt_state.skipped) == (1, 1)

    go_on, straight = step(LOSS)(after, stream[3])[0], step(LOSS)(before, stream[3])[0]
    assert same(go_on.params, straight.params)
    assert same(go_on.opt_state.inner, straight.opt_state.inner)
    assert not same(go_on.params, after.params)


def test_accumulated_steps_are_whole_steps(tx, stream, rough, gap):
    whole = pipe(value_and_grad, step_with(tx))(LOSS)
    parts = pipe(value_and_grad, accumulate(2), step_with(tx))(LOSS)
    state = init_state(rough(CONFIG), tx)
    # The gradients agree to 1e-6; Adam's first step divides them by their own size.
    assert gap(parts(state, stream[0])[0].params, whole(state, stream[0])[0].params) <= 1e-5


@pytest.mark.parametrize("name", ["adamw-wsd-ema", "muon", "lion", "sgd", "adafactor"])
def test_an_update_compiled_is_eager(name, no_shape_checks, gap):
    # Two leaves where the model has thirteen: what may break is in the transform, and tracing takes its time.
    tx = OPTIMIZERS[name]

    def draw(key):
        shapes = {"blocks": {"ffn": {"up": (2, 6, 4)}}, "norm": (4,)}
        return tree.update_in(shapes, lambda path, shape: random.normal(random.fold_in(key, path), shape))

    def move(grads, opt_state, params):
        updates, opt_state = tx.update(grads, opt_state, params)
        return opt_state, apply_updates(params, updates)

    compiled = torch.compile(move, backend="aot_eager", fullgraph=True)
    # Cloned as in `init_state`: a state whose leaves are one tensor would be compiled for that, and then again.
    one = two = (tree.map(torch.clone, tx.init(draw(0))), draw(0))
    for key in (1, 2):
        one, two = move(draw(key), *one), compiled(draw(key), *two)
    # Muon makes small singular values large, and what was rounded in them with them.
    assert gap(two, one) <= (1e-4 if name == "muon" else 1e-5)


def test_a_sweep_is_its_runs_alone(stream, rough, gap):
    rates, decays = (1e-3, 3e-3, 1e-2), (0.0, 0.1, 0.1)

    def starts(sweep):
        configs = [RECIPE(name="muon", learning_rate=r, weight_decay=d) for r, d in zip(rates, decays, strict=True)]
        recipe = [recipes.make(config, 20, MATRIX, sweep=sweep) for config in configs]
        return recipe, [init_state(rough(CONFIG), tx) for tx in recipe]

    (any_one, *_), members = starts(sweep=True)
    lift = pipe(partial(value_and_grad, engine="func"), step_with(any_one))
    together = walk(ensemble(lift(LOSS)), gather(members), stream)
    for e, (tx, state) in enumerate(zip(*starts(sweep=False), strict=True)):
        alone, metrics = walk(pipe(value_and_grad, step_with(tx))(LOSS), state, stream)
        assert gap(tree.map(lambda leaf, e=e: leaf[e], together[0].params), alone.params) <= 1e-5
        assert together[1]["loss"][e] == pytest.approx(metrics["loss"].item(), rel=1e-5)
        rate = transforms.find(alone.opt_state, transforms.ScheduleState).rate
        assert transforms.find(together[0].opt_state, transforms.ScheduleState).rate[e] == pytest.approx(rate.item())


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own doing
def test_a_whole_step_compiled_is_eager(stream, rough, no_shape_checks, gap):
    tx, loss = OPTIMIZERS["adamw-wsd-ema"], next_token(partial(gpt.apply, SHALLOW))
    step = pipe(partial(value_and_grad, engine="func"), step_with(tx))(loss)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    state = init_state(rough(SHALLOW), tx)
    assert gap(walk(compiled, state, stream[:2]), walk(step, state, stream[:2])) <= 1e-5


def test_a_whole_ensemble_compiled_is_eager(stream, rough, no_shape_checks, gap):
    # Dynamo has no vmap rule for an autograd.Function: the plain loss it is.
    tx, loss = OPTIMIZERS["adamw"], next_token(partial(gpt.apply, SHALLOW), chunked=False)
    step = torch.func.vmap(pipe(partial(value_and_grad, engine="func"), step_with(tx))(loss), in_dims=(0, None))
    states = tree.stack(*(init_state(rough(SHALLOW, key), tx) for key in range(2)))
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert gap(compiled(states, stream[0]), step(states, stream[0])) <= 1e-5
