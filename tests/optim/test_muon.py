"""Muon against an SVD and torch's own."""

import math

import pytest
import torch
from torch import nn

from slm_fn.core import random
from slm_fn.optim import combine, muon, schedules, transforms
from slm_fn.optim.muon import JORDAN, POLAR, orthogonalize

KINDS = {"jordan": (JORDAN, 1.0), "polar": (POLAR, 1.02)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalize_is_its_polynomials_of_the_singular_values(shape, kind):
    polynomials, room = KINDS[kind]
    g = random.normal(4, shape).double()
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    want = s / s.norm() / room
    for a, b, c in polynomials:
        want = a * want + b * want**3 + c * want**5
    got = orthogonalize(g, polynomials, torch.float64, room)
    assert (got - u @ want.diag() @ vt).abs().max() < 1e-12
    near = orthogonalize(g.float(), polynomials, torch.float32, room)
    assert (near - got).abs().max() < 1e-4
    assert want[s > 0.05 * s.max()].min() > 0.6
    assert want.max() < 1.25
    assert torch.cosine_similarity(near.flatten(), (u @ vt).float().flatten(), 0) > 0.97


def test_polar_is_nearer_the_polar_factor():
    # Matrices as gradients are: a few strong directions over weak ones.
    g = random.normal(1, (64, 4)) @ random.normal(2, (4, 128)) + 0.02 * random.normal(3, (64, 128))
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    off = {kind: (orthogonalize(g, p, room=room) - u @ vt).norm() / 8 for kind, (p, room) in KINDS.items()}
    assert off["polar"] < 0.8 * off["jordan"]


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonalize_is_batched_and_blind_to_scale(kind, gap):
    polynomials, room = KINDS[kind]

    def turn(x):
        return orthogonalize(x, polynomials, room=room)

    g = random.normal(5, (4, 6, 10))
    together = turn(g)
    assert gap({"w": together}, {"w": torch.stack([turn(one) for one in g])}) <= 1e-5
    assert gap({"w": turn(g * torch.tensor([1e-4, 1, 10, 1e4])[:, None, None])}, {"w": together}) <= 1e-4
    assert gap({"w": turn(g.mT)}, {"w": together.mT}) <= 1e-5
    assert gap({"w": turn(g.reshape(2, 2, 6, 10))}, {"w": together.reshape(2, 2, 6, 10)}) <= 1e-5
    assert torch.equal(turn(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good(kind, dtype):
    polynomials, room = KINDS[kind]
    g = random.normal(5, (4, 16, 24))
    rounded = orthogonalize(g, polynomials, dtype, room)
    assert rounded.dtype == torch.float32
    assert torch.linalg.svdvals(rounded).sub(1).abs().max() < 0.45
    # Equal columns: the largest value is the whole norm, where rounding could push it past 1 and away.
    equal = orthogonalize(torch.ones(64, 64), polynomials, dtype, room)
    assert 0.6 < torch.linalg.matrix_norm(equal, 2) < 1.25


@pytest.mark.parametrize(("fit", "theirs"), [("rms", "match_rms_adamw"), ("shape", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_torch_s(fit, theirs, nesterov, monkeypatch, gap, purely):
    # torch multiplies in bf16 only, where the order of operations shows; in float32 both agree to the last digits.
    from torch.optim import _muon

    def precise(grad, coefficients, steps, eps):
        return orthogonalize(grad, (coefficients,) * steps)

    shapes = [(6, 10), (10, 6), (8, 8)]
    for patched, tolerance in ((False, 2e-2), (True, 1e-5)):
        if patched:
            monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", precise)
        turn = muon.scale_by_muon(0.9, nesterov, JORDAN, fit, torch.float32 if patched else torch.bfloat16)
        rate = transforms.scale_by_learning_rate(schedules.constant(0.02))
        tx = combine.chain(turn, transforms.add_decayed_weights(0.3, lambda path: True), rate)
        params = {str(i): random.normal(i, (2, *shape)) for i, shape in enumerate(shapes)}
        twins = {path: [nn.Parameter(one.clone()) for one in w] for path, w in params.items()}
        peer = torch.optim.Muon(
            [twin for pair in twins.values() for twin in pair],
            lr=0.02,
            weight_decay=0.3,
            momentum=0.9,
            nesterov=nesterov,
            adjust_lr_fn=theirs,
        )
        state = tx.init(params)
        for n in range(5):
            grads = {path: random.normal(random.fold_in(n, path), w.shape) for path, w in params.items()}
            updates, state = purely(tx.update, grads, state, params)
            params = combine.apply_updates(params, updates)
            for path, g in grads.items():
                for twin, one in zip(twins[path], g, strict=True):
                    twin.grad = one.clone()
            peer.step()
        assert gap(params, {path: torch.stack(list(pair)).detach() for path, pair in twins.items()}) <= tolerance


def test_muon_is_nesterov_then_orthogonalize_then_scale(purely):
    tx = muon.scale_by_muon(momentum=0.9)
    params = {"w": torch.zeros(2, 6, 10)}
    state, mu = tx.init(params), torch.zeros(2, 6, 10)
    for n in range(3):
        g = random.normal(n, (2, 6, 10))
        updates, state = purely(tx.update, {"w": g}, state, params)
        mu = 0.9 * mu + 0.1 * g
        ahead = 0.9 * mu + 0.1 * g
        for layer in range(2):
            u, _, vt = torch.linalg.svd(ahead[layer], full_matrices=False)
            want = 0.2 * math.sqrt(10) * u @ vt
            assert torch.cosine_similarity(updates["w"][layer].flatten(), want.flatten(), 0) > 0.97
            assert 0.75 < updates["w"][layer].norm() / want.norm() < 1.2
    assert torch.allclose(state.mu["w"], mu, atol=1e-6)


@pytest.mark.parametrize("polynomials", [JORDAN, POLAR], ids=["jordan", "polar"])
def test_a_compiled_update_is_the_update(polynomials, no_shape_checks):
    tx = muon.scale_by_muon(polynomials=polynomials)
    grads = {"w": torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))}
    compiled = torch.compile(tx.update, backend="eager")
    assert torch.equal(compiled(grads, tx.init(grads), grads)[0]["w"], tx.update(grads, tx.init(grads), grads)[0]["w"])
