"""Muon against an SVD and against torch.optim.Muon."""

import math

import pytest
import torch
from torch import nn

from slm_fn.core import random
from slm_fn.optim import combine, muon, schedules, transforms
from slm_fn.optim.muon import JORDAN_COEFFICIENTS, POLAR_EXPRESS_COEFFICIENTS, orthogonalize

KINDS = {"jordan": (JORDAN_COEFFICIENTS, 1.0), "polar": (POLAR_EXPRESS_COEFFICIENTS, 1.02)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalize_applies_its_polynomials_to_the_singular_values(shape, kind):
    coefficients, norm_margin = KINDS[kind]
    g = random.normal(4, shape).double()
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    want = s / s.norm() / norm_margin
    for a, b, c in coefficients:
        want = a * want + b * want**3 + c * want**5
    got = orthogonalize(g, coefficients, torch.float64, norm_margin)
    assert (got - u @ want.diag() @ vt).abs().max() < 1e-12
    near = orthogonalize(g.float(), coefficients, torch.float32, norm_margin)
    assert (near - got).abs().max() < 1e-4
    assert want[s > 0.05 * s.max()].min() > 0.6
    assert want.max() < 1.25
    assert torch.cosine_similarity(near.flatten(), (u @ vt).float().flatten(), 0) > 0.97


def test_polar_express_is_closer_to_the_polar_factor():
    # Like gradients: a few strong directions and many weak ones.
    g = random.normal(1, (64, 4)) @ random.normal(2, (4, 128)) + 0.02 * random.normal(3, (64, 128))
    u, _, vt = torch.linalg.svd(g, full_matrices=False)
    error = {
        kind: (orthogonalize(g, p, norm_margin=norm_margin) - u @ vt).norm() / 8
        for kind, (p, norm_margin) in KINDS.items()
    }
    assert error["polar"] < 0.8 * error["jordan"]


@pytest.mark.parametrize("kind", KINDS)
def test_orthogonalize_is_batched_and_invariant_to_scale(kind, gap):
    coefficients, norm_margin = KINDS[kind]

    def orthogonal(x):
        return orthogonalize(x, coefficients, norm_margin=norm_margin)

    g = random.normal(5, (4, 6, 10))
    together = orthogonal(g)
    assert gap({"w": together}, {"w": torch.stack([orthogonal(one) for one in g])}) <= 1e-5
    assert (
        gap({"w": orthogonal(g * torch.tensor([1e-4, 1, 10, 1e4])[:, None, None])}, {"w": together})
        <= 1e-4
    )
    assert gap({"w": orthogonal(g.mT)}, {"w": together.mT}) <= 1e-5
    assert (
        gap({"w": orthogonal(g.reshape(2, 2, 6, 10))}, {"w": together.reshape(2, 2, 6, 10)}) <= 1e-5
    )
    assert torch.equal(orthogonal(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_good(kind, dtype):
    coefficients, norm_margin = KINDS[kind]
    g = random.normal(5, (4, 16, 24))
    rounded = orthogonalize(g, coefficients, dtype, norm_margin)
    assert rounded.dtype == torch.float32
    assert torch.linalg.svdvals(rounded).sub(1).abs().max() < 0.45
    # Equal columns: the largest singular value is the Frobenius norm, which rounding could push
    # above 1, where the polynomials diverge.
    equal = orthogonalize(torch.ones(64, 64), coefficients, dtype, norm_margin)
    assert 0.6 < torch.linalg.matrix_norm(equal, 2) < 1.25


@pytest.mark.parametrize(("fit", "theirs"), [("rms", "match_rms_adamw"), ("shape", "original")])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_equals_torch_s(fit, theirs, nesterov, monkeypatch, gap, purely):
    # torch multiplies in bf16 only, where the order of operations matters; in float32 both agree
    # to the last digits.
    from torch.optim import _muon

    def precise(grad, coefficients, steps, eps):
        return orthogonalize(grad, (coefficients,) * steps)

    shapes = [(6, 10), (10, 6), (8, 8)]
    for patched, tolerance in ((False, 2e-2), (True, 1e-5)):
        if patched:
            monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", precise)
        direction = muon.scale_by_muon(
            0.9, nesterov, JORDAN_COEFFICIENTS, fit, torch.float32 if patched else torch.bfloat16
        )
        rate = transforms.scale_by_learning_rate(schedules.constant(0.02))
        tx = combine.chain(direction, transforms.add_decayed_weights(0.3, lambda path: True), rate)
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
            grads = {
                path: random.normal(random.fold_in(n, path), w.shape) for path, w in params.items()
            }
            updates, state = purely(tx.update, grads, state, params)
            params = combine.apply_updates(params, updates)
            for path, g in grads.items():
                for twin, one in zip(twins[path], g, strict=True):
                    twin.grad = one.clone()
            peer.step()
        assert (
            gap(params, {path: torch.stack(list(pair)).detach() for path, pair in twins.items()})
            <= tolerance
        )


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


@pytest.mark.parametrize(
    "coefficients", [JORDAN_COEFFICIENTS, POLAR_EXPRESS_COEFFICIENTS], ids=["jordan", "polar"]
)
def test_a_compiled_update_equals_the_eager_update(coefficients, no_shape_checks):
    tx = muon.scale_by_muon(coefficients=coefficients)
    grads = {"w": torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))}
    compiled = torch.compile(tx.update, backend="eager")
    assert torch.equal(
        compiled(grads, tx.init(grads), grads)[0]["w"],
        tx.update(grads, tx.init(grads), grads)[0]["w"],
    )
