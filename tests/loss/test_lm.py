"""The chunked loss equals plain cross entropy under every transformation that it supports."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from slm_fn.core import random, tree
from slm_fn.core.types import LMBatch
from slm_fn.loss import lm

V, D, B, T = 19, 6, 3, 7
GIVEN = (
    random.normal(0, (V, D)),
    random.normal(1, (B, T, D)),
    (random.uniform(2, (B, T)) * V).long(),
    random.uniform(3, (B, T)) * (random.uniform(4, (B, T)) > 0.3),
)


def chunked(weight, hidden, targets=GIVEN[2], mask=GIVEN[3]):
    return lm.chunked_nll(weight, hidden, targets, mask)


def plain(weight, hidden, targets=GIVEN[2], mask=GIVEN[3]):
    nll = F.cross_entropy((hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none")
    return (nll * mask.flatten()).sum()


@pytest.fixture(params=[1, 4, 5, B * T, 512], autouse=True)
def _chunk(request, monkeypatch):
    # 21 targets: equal chunks, a remainder, one chunk, less than one.
    monkeypatch.setattr(lm, "CHUNK_TOKENS", request.param)


def test_value_and_gradients(gap, purely):
    both = [torch.func.grad_and_value(f, argnums=(0, 1)) for f in (chunked, plain)]
    (grads, value), (want_grads, want) = (purely(f, *GIVEN[:2]) for f in both)
    assert abs(value - want) < 1e-6 * want
    assert gap(grads, want_grads) <= 1e-6


def test_gradients_by_autograd_scale_with_what_comes_after(gap):
    leaves = [x.clone().requires_grad_() for x in GIVEN[:2]]
    of = [torch.autograd.grad(f(*leaves).exp().log() * 3, leaves) for f in (chunked, plain)]
    assert gap(of[0], of[1]) <= 1e-6


def test_one_side_alone(gap):
    for i in (0, 1):
        of = [torch.func.grad(f, argnums=i)(*GIVEN[:2]) for f in (chunked, plain)]
        assert gap({"g": of[0]}, {"g": of[1]}) <= 1e-6
        leaves = [x.clone().requires_grad_(i == j) for j, x in enumerate(GIVEN[:2])]
        of = [torch.autograd.grad(f(*leaves), leaves[i]) for f in (chunked, plain)]
        assert gap(of[0], of[1]) <= 1e-6


def test_the_mask_has_its_gradient(gap):
    of = [torch.func.grad(f, argnums=3)(*GIVEN) for f in (chunked, plain)]
    assert gap({"g": of[0]}, {"g": of[1]}) <= 1e-6


def test_under_vmap_over_weights(gap):
    weights = random.normal(5, (4, V, D))
    of = [
        torch.func.vmap(torch.func.grad_and_value(f, (0, 1)), (0, None))(weights, GIVEN[1])
        for f in (chunked, plain)
    ]
    assert gap(of[0], of[1]) <= 1e-6


def test_under_vmap_over_weights_and_hidden(gap):
    weights, hidden = random.normal(5, (4, V, D)), random.normal(6, (4, B, T, D))
    of = [
        torch.func.vmap(torch.func.grad_and_value(f, (0, 1)))(weights, hidden)
        for f in (chunked, plain)
    ]
    assert gap(of[0], of[1]) <= 1e-6


def test_under_vmap_over_examples(gap):
    def one(f, hidden, targets, mask):
        return torch.func.grad_and_value(f, (0, 1))(
            GIVEN[0], hidden[None], targets[None], mask[None]
        )

    of = [torch.func.vmap(partial(one, f))(*GIVEN[1:]) for f in (chunked, plain)]
    assert gap(of[0], of[1]) <= 1e-6


def test_under_both_vmaps_at_once(gap):
    weights = random.normal(5, (4, V, D))

    def one(f, weight, hidden, targets, mask):
        return torch.func.grad(f)(weight, hidden[None], targets[None], mask[None])

    def both(f):
        return torch.func.vmap(
            torch.func.vmap(partial(one, f), (None, 0, 0, 0)), (0, None, None, None)
        )

    of = [both(f)(weights, *GIVEN[1:]) for f in (chunked, plain)]
    assert gap({"g": of[0]}, {"g": of[1]}) <= 1e-6


def test_rows_that_count_nothing(gap):
    mask = GIVEN[3].clone()
    mask[1] = 0
    of = [torch.func.grad(f, (0, 1))(*GIVEN[:2], GIVEN[2], mask) for f in (chunked, plain)]
    assert gap(of[0], of[1]) <= 1e-6
    assert not of[0][1][1].any()
    assert chunked(*GIVEN[:2], GIVEN[2], torch.zeros(B, T)) == 0


def test_huge_logits_neither_overflow_nor_vanish(gap):
    of = [torch.func.grad_and_value(f, (0, 1))(GIVEN[0] * 300, GIVEN[1]) for f in (chunked, plain)]
    assert gap(of[0], of[1]) <= 1e-6


@pytest.mark.parametrize("argnums", [0, 1])
def test_double_differentiation_raises(argnums):
    def size(f):
        return lambda *given: tree.global_norm(torch.func.grad(f, (0, 1))(*given))

    assert torch.func.grad(size(plain), argnums)(*GIVEN[:2]).any()
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.func.grad(size(chunked), argnums)(*GIVEN[:2])
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.func.jacrev(torch.func.grad(chunked, argnums), argnums)(*GIVEN[:2])


def test_double_differentiation_by_autograd_raises():
    leaves = [x.clone().requires_grad_() for x in GIVEN[:2]]
    grads = torch.autograd.grad(chunked(*leaves), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)


def test_forward_mode_raises():
    with pytest.raises((RuntimeError, NotImplementedError), match="jvp"):
        torch.func.jvp(chunked, GIVEN[:2], GIVEN[:2])
    with pytest.raises((RuntimeError, NotImplementedError), match=r"jvp|forward"):
        torch.func.jvp(torch.func.grad(chunked), GIVEN[:2], GIVEN[:2])


def test_bf16_products_keep_a_float32_loss(gap):
    weight, hidden = GIVEN[0], GIVEN[1].bfloat16()
    grads, value = torch.func.grad_and_value(chunked, (0, 1))(weight, hidden)
    assert (value.dtype, grads[0].dtype, grads[1].dtype) == (
        torch.float32,
        torch.float32,
        torch.bfloat16,
    )
    want_grads, want = torch.func.grad_and_value(plain, (0, 1))(weight, hidden.float())
    assert abs(value - want) < 0.01 * want
    assert gap({"g": grads[0]}, {"g": want_grads[0]}) < 0.02
    # bf16 has 8 bits: a sum of 21 losses rounded to it would be a multiple of 0.25.
    assert value * 64 % 1 != 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_bent_logits_and_smoothed_targets(gap, softcap, smoothing):
    def oracle(weight, hidden):
        logits = hidden @ weight.T
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        targets = GIVEN[2].flatten()
        nll = F.cross_entropy(
            logits.flatten(0, 1), targets, reduction="none", label_smoothing=smoothing
        )
        return (nll * GIVEN[3].flatten()).sum()

    def single_chunk(weight, hidden):
        return (
            lm.token_nll(weight, hidden, GIVEN[2], softcap=softcap, smoothing=smoothing) * GIVEN[3]
        ).sum()

    own = partial(
        lm.chunked_nll, targets=GIVEN[2], mask=GIVEN[3], softcap=softcap, smoothing=smoothing
    )
    wanted, *of = (
        torch.func.grad_and_value(f, argnums=(0, 1))(*GIVEN[:2])
        for f in (oracle, own, single_chunk)
    )
    assert all(gap(result, wanted) <= 2e-6 for result in of)


def test_plain_token_nll_is_cross_entropy():
    weight, hidden, targets, _ = GIVEN
    want = F.cross_entropy(
        (hidden @ weight.T).flatten(0, 1), targets.flatten(), reduction="none"
    ).view(B, T)
    assert torch.allclose(lm.token_nll(weight, hidden, targets), want, atol=1e-5)


def test_next_token_is_the_mean_over_counted_targets(config, rough, batch, model):
    params, rows = rough(config), batch(config)
    logp = model(params, rows.tokens[:, :-1])[0].log_softmax(-1)
    total = count = 0
    for b in range(rows.tokens.shape[0]):
        for t in range(rows.mask.shape[1]):
            if rows.mask[b, t]:
                total, count = total - logp[b, t, rows.tokens[b, t + 1]], count + 1
    for loss in (
        lm.next_token(model),
        lm.next_token(model, chunked=False),
        lm.next_token_from_logits(model),
    ):
        value, aux = loss(params, rows)
        assert abs(value - total / count) < 1e-5
        assert aux["weight"] == count


def test_targets_without_weight_are_not_looked_at(config, rough, batch, model):
    params, rows = rough(config), batch(config)
    mask = rows.mask.clone()
    mask[:, -1] = 0
    other = rows.tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % config.vocab_size
    loss = lm.next_token(model)
    assert loss(params, LMBatch(rows.tokens, mask))[0] == loss(params, LMBatch(other, mask))[0]


def test_sequence_logprob_is_the_sum_over_a_row(config, rough, batch, model):
    params, rows = rough(config), batch(config)
    got = lm.sequence_logprob(model, params, rows)
    for b in range(rows.tokens.shape[0]):
        value, aux = lm.next_token(model)(
            params, LMBatch(rows.tokens[b : b + 1], rows.mask[b : b + 1])
        )
        assert abs(got[b] + value * aux["weight"]) < 1e-4


def test_the_mean_over_nothing_is_zero_and_over_little_is_exact():
    assert lm.divide_or_zero(torch.tensor(0.0), torch.tensor(0.0)) == 0
    assert lm.divide_or_zero(torch.tensor(0.5), torch.tensor(0.25)) == 2
