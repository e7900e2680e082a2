"""lift/taps.py: reading changes no bit, steering changes what it names, however transformed."""

from functools import partial

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.grads import accumulate, remat, value_and_grad
from slm_fn.core.types import PairBatch
from slm_fn.lift import taps
from slm_fn.lift.taps import (
    activation_stats,
    steer,
    value_only,
    with_activation_stats,
    with_activations,
)
from slm_fn.loss.lm import next_token
from slm_fn.loss.preference import dpo, reference_from_batch

NAMES = ["0/attn", "0/ffn", "1/attn", "1/ffn", "final"]


@pytest.fixture
def tokens(config, batch):
    return batch(config).tokens[:, :-1]


def test_acts_are_collected_and_the_output_is_the_same(model, config, rough, tokens, same, purely):
    params = rough(config)
    (logits, cache), acts = purely(with_activations(model), params, tokens)
    assert same(logits, model(params, tokens)[0])
    assert cache is None
    assert list(acts) == NAMES
    assert all(x.shape == (*tokens.shape, config.dim) for x in acts.values())
    assert torch.equal(logits, acts["final"] @ params["embed"].mT)
    assert list(with_activations(model, ["0/*", "final"])(params, tokens)[1]) == [
        "0/attn",
        "0/ffn",
        "final",
    ]


def test_a_tap_of_the_caller_sees_what_goes_on(model, config, rough, tokens):
    activations_seen = {}
    _, acts = with_activations(model)(
        rough(config), tokens, tap=lambda name, x: activations_seen.setdefault(name, x * 2)
    )
    assert torch.equal(activations_seen["0/attn"], acts["0/attn"] * 2)
    _, steered = with_activations(steer({"0/attn": torch.zeros_like})(model))(rough(config), tokens)
    assert not steered["0/attn"].any()


def test_statistics_are_those_of_the_numbers(tokens):
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).relu()
    stats = activation_stats(x.bfloat16())
    exact = x.bfloat16().double()
    assert stats["mean"].item() == pytest.approx(exact.mean().item(), rel=1e-6)
    assert stats["std"].item() == pytest.approx(exact.std(correction=0).item(), rel=1e-6)
    assert stats["rms"].item() == pytest.approx(exact.square().mean().sqrt().item(), rel=1e-6)
    assert stats["zeros"].item() == pytest.approx((exact == 0).double().mean().item())
    assert 0.3 < stats["zeros"] < 0.7
    assert all(value.dtype == torch.float32 for value in stats.values())


def test_watching_changes_no_bit_of_loss_and_gradients(model, config, rough, batch, same, purely):
    params, rows = rough(config), batch(config)
    for engine in ("autograd", "func"):
        plain = value_and_grad(next_token(model), engine)(params, rows)
        watched = purely(
            value_and_grad(with_activation_stats(["mean", "rms"])(next_token)(model), engine),
            params,
            rows,
        )
        assert same((plain[0][0], plain[1]), (watched[0][0], watched[1]))
        aux = {
            name: x for name, x in watched[0][1].items() if not name.startswith(taps.STATS_PREFIX)
        }
        assert same(aux, plain[0][1])


def test_what_is_watched_is_what_is_there(model, config, rough, batch):
    params, rows = rough(config), batch(config)
    _, aux = with_activation_stats(list(taps.STATS), ["*/ffn"])(next_token)(model)(params, rows)
    _, acts = with_activations(model)(params, rows.tokens[:, :-1])
    stats_of_aux = {name: x for name, x in aux.items() if name.startswith("acts/")}
    assert len(stats_of_aux) == 2 * 4
    for name, value in stats_of_aux.items():
        _, layer, part, stat = name.split("/")
        assert torch.equal(value, activation_stats(acts[f"{layer}/{part}"])[stat])


def test_both_sides_of_a_pair_are_averaged(model, config, rough, batch):
    params, sides = rough(config), [batch(config, key=key) for key in (1, 2)]
    objective = with_activation_stats(["mean"])(dpo(reference_from_batch))
    _, aux = objective(model)(params, PairBatch(*sides, torch.zeros(4, 2)))
    each = [
        with_activations(model)(params, side.tokens[:, :-1])[1]["final"].mean() for side in sides
    ]
    assert aux["acts/final/mean"].item() == pytest.approx(sum(each).item() / 2, rel=1e-5)
    assert "reward_margin" in aux


def test_parts_of_a_batch_tell_the_mean_of_the_whole(model, config, rough, batch):
    params = rough(config)
    rows = batch(config)._replace(mask=torch.ones(4, 12))
    vg = value_only(with_activation_stats(["mean", "zeros"])(next_token)(model))
    (value, full_aux), grads = vg(params, rows)
    (in_parts, parts), none = accumulate(2)(vg)(params, rows)
    assert grads == none == {}
    assert not value.requires_grad
    torch.testing.assert_close((in_parts, parts), (value, full_aux))


def test_observing_sees_what_training_sees(model, config, rough, batch, same):
    params, rows = rough(config), batch(config)
    loss = with_activation_stats(["rms"])(next_token)(model)
    assert same(value_only(loss)(params, rows)[0], value_and_grad(loss)(params, rows)[0])


def test_remat_and_watching_go_together(model, config, rough, batch, same):
    params, rows = rough(config), batch(config)
    plain = value_and_grad(with_activation_stats(["rms"])(next_token)(model))(params, rows)
    again = value_and_grad(
        with_activation_stats(["rms"])(next_token)(partial(model, lift_block=remat))
    )(params, rows)
    assert same(plain, again)


def test_steering_adds_what_is_named_and_nothing_else(model, config, rough, tokens, same):
    params, arrow = rough(config), torch.full((config.dim,), 0.5)
    steered = steer({"0/ffn": lambda x: x + arrow})(model)
    logits, acts = with_activations(steered)(params, tokens)
    before = with_activations(model)(params, tokens)[1]
    assert torch.equal(acts["0/ffn"], before["0/ffn"] + arrow)
    assert torch.equal(acts["0/attn"], before["0/attn"])
    assert (acts["final"] - before["final"]).abs().max() > 1e-3
    assert same(steer({"*": lambda x: x})(model)(params, tokens)[0], model(params, tokens)[0])
    twice = steer({"0/ffn": lambda x: x * 2})(steer({"0/ffn": lambda x: x + arrow})(model))
    assert torch.equal(
        with_activations(twice)(params, tokens)[1]["0/ffn"], (before["0/ffn"] + arrow) * 2
    )
    assert logits[0].shape == (4, 12, config.vocab_size)


def test_taps_ride_through_vmap_func_and_compile(model, config, rough, tokens, no_shape_checks):
    members = [rough(config, key) for key in range(2)]

    def both(params):
        return with_activations(steer({"1/*": lambda x: x * 2})(model))(params, tokens)[1]

    together = torch.func.vmap(both)(tree.stack(*members))
    for i, member in enumerate(members):
        for name, x in both(member).items():
            torch.testing.assert_close(together[name][i], x, rtol=1e-4, atol=1e-5)
    grads = torch.func.grad(lambda params: both(params)["0/ffn"].sum())(members[0])
    assert grads["blocks"]["ffn"]["down"][0].any()
    assert not grads["blocks"]["ffn"]["down"][1].any()
    compiled = torch.compile(both, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(members[0])["final"], both(members[0])["final"])


def test_watching_rides_through_vmap(model, config, rough, batch):
    members, rows = [rough(config, key) for key in range(2)], batch(config)
    vg = value_and_grad(with_activation_stats(["std"])(next_token)(model), "func")
    (_, aux), _ = torch.func.vmap(vg, in_dims=(0, None))(tree.stack(*members), rows)
    for i, member in enumerate(members):
        torch.testing.assert_close(
            aux["acts/1/ffn/std"][i], vg(member, rows)[0][1]["acts/1/ffn/std"]
        )


def test_names_that_are_not_there_are_told(model, config, rough, tokens, batch):
    with pytest.raises(ValueError, match="did you mean 'zeros'"):
        with_activation_stats(["zeroes"])
    params = rough(config)
    for run in (with_activations(model, ["2/ffn"]), steer({"2/ffn": lambda x: x})(model)):
        with pytest.raises(
            ValueError, match=r"'2/ffn'; there are 0/attn, 0/ffn, 1/attn, 1/ffn, final"
        ):
            run(params, tokens)
    with pytest.raises(ValueError, match="no activation is called '\\*/mlp'"):
        with_activation_stats(["rms"], ["*/mlp"])(next_token)(model)(params, batch(config))
