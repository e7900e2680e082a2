"""Transforms against torch's own optimizers, an SVD and a loop."""

import math

import pytest
import torch
from torch import nn

from slm_fn.core import random, tree
from slm_fn.optim import combine, guard, schedules, transforms
from slm_fn.optim.transforms import AdamState, EmaState, ScheduleState, find

SHAPES = {"blocks": {"w": (3, 4, 5), "norm": (3, 4)}, "embed": (7, 4), "head": (7, 4), "norm": (4,)}
IS_MATRIX = {"blocks/w"}.__contains__


def draw(key, std=1.0):
    return tree.update_in(SHAPES, lambda path, shape: random.normal(random.fold_in(key, path), shape, std))


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.95), (0.0, 0.99)])
def test_adamw_is_torch_s(b1, b2, gap, purely):
    schedule = schedules.warmup_cosine(3e-3, 4, 20)
    tx = combine.chain(
        transforms.scale_by_adam(b1, b2, 1e-8),
        transforms.add_decayed_weights(0.3, IS_MATRIX),
        transforms.scale_by_learning_rate(schedule),
    )
    params = draw(0)
    twins = {path: nn.Parameter(w.clone()) for path, w in tree.paths(params).items()}
    groups = [
        {"params": [w for path, w in twins.items() if IS_MATRIX(path)], "weight_decay": 0.3},
        {"params": [w for path, w in twins.items() if not IS_MATRIX(path)], "weight_decay": 0.0},
    ]
    peer = torch.optim.AdamW(groups, lr=1.0, betas=(b1, b2), eps=1e-8)
    state = tx.init(params)
    for n in range(20):
        grads = draw(100 + n, std=10.0 ** (n % 5 - 3))
        updates, state = purely(tx.update, grads, state, params)
        params = combine.apply_updates(params, updates)
        for group in peer.param_groups:
            group["lr"] = schedule(torch.tensor(float(n))).item()
        for path, g in tree.paths(grads).items():
            twins[path].grad = g
        peer.step()
    assert gap(params, tree.from_paths(params, twins)) <= 1e-6
    assert find(state, AdamState).num_updates == 20


def test_adam_s_first_direction_is_the_sign_at_any_scale():
    # mu_hat / sqrt(nu_hat) is g / |g|: exact only if the bias corrections are.
    adam = transforms.scale_by_adam(0.9, 0.999, 0.0)
    for size in (1e-12, 1.0, 1e12):
        g = {"w": size * torch.tensor([-3.0, 2.0, 0.5])}
        updates, _ = adam.update(g, adam.init(g), g)
        assert (updates["w"] - torch.tensor([-1.0, 1.0, 1.0])).abs().max() < 1e-6


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_is_torch_s(max_norm, gap):
    grads = draw(3)
    twins = [nn.Parameter(torch.zeros_like(g)) for g in tree.leaves(grads)]
    for twin, g in zip(twins, tree.leaves(grads), strict=True):
        twin.grad = g.clone()
    nn.utils.clip_grad_norm_(twins, max_norm)
    clip = transforms.clip_by_global_norm(max_norm)
    clipped, _ = clip.update(grads, clip.init(grads), grads)
    assert gap(dict(enumerate(tree.leaves(clipped))), {i: twin.grad for i, twin in enumerate(twins)}) <= 1e-6
    assert tree.global_norm(clipped) <= max_norm * 1.000001


def test_a_zero_gradient_is_clipped_to_zero():
    zeros = tree.map(torch.zeros_like, draw(0))
    clipped, _ = transforms.clip_by_global_norm(1.0).update(zeros, (), zeros)
    assert tree.global_norm(clipped) == 0


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonalize_is_near_the_polar_factor(shape):
    g = random.normal(4, shape)
    u, s, vt = torch.linalg.svd(g, full_matrices=False)
    near = transforms.orthogonalize(g)
    # The same singular vectors, with every value carried into a band around 1: s falls by less than half of it.
    core = u.T @ near @ vt.T
    values = core.diagonal()
    assert (core - values.diag()).abs().max() < 1e-4
    assert values[s > 0.05 * s.max()].min() > 0.6
    assert values.max() < 1.25
    assert torch.cosine_similarity(near.flatten(), (u @ vt).flatten(), 0) > 0.97


def test_orthogonalize_is_batched_and_blind_to_scale(gap):
    g = random.normal(5, (4, 6, 10))
    together = transforms.orthogonalize(g)
    apart = torch.stack([transforms.orthogonalize(one) for one in g])
    assert gap({"w": together}, {"w": apart}) <= 1e-6
    assert (
        gap({"w": transforms.orthogonalize(g * torch.tensor([1e-4, 1, 10, 1e4])[:, None, None])}, {"w": together})
        <= 1e-4
    )
    assert gap({"w": transforms.orthogonalize(g.mT)}, {"w": together.mT}) <= 1e-5
    assert torch.equal(transforms.orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4))


def test_orthogonalize_in_bf16_is_as_good():
    g = random.normal(5, (4, 16, 24))
    rounded = transforms.orthogonalize(g, dtype=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert torch.linalg.svdvals(rounded).sub(1).abs().max() < 0.45


def test_muon_is_nesterov_then_orthogonalize_then_scale(purely):
    muon = transforms.scale_by_muon(momentum=0.9)
    params = {"w": torch.zeros(2, 6, 10)}
    state, mu = muon.init(params), torch.zeros(2, 6, 10)
    for n in range(3):
        g = random.normal(n, (2, 6, 10))
        updates, state = purely(muon.update, {"w": g}, state, params)
        mu = 0.9 * mu + 0.1 * g
        ahead = 0.9 * mu + 0.1 * g
        for layer in range(2):
            u, _, vt = torch.linalg.svd(ahead[layer], full_matrices=False)
            want = 0.2 * math.sqrt(10) * u @ vt
            assert torch.cosine_similarity(updates["w"][layer].flatten(), want.flatten(), 0) > 0.97
            assert 0.75 < updates["w"][layer].norm() / want.norm() < 1.2
    assert torch.allclose(state.mu["w"], mu, atol=1e-6)


def test_decay_reaches_only_what_was_chosen():
    params, zeros = draw(0), tree.map(torch.zeros_like, draw(0))
    decayed, _ = transforms.add_decayed_weights(0.1, IS_MATRIX).update(zeros, (), params)
    moved = {path for path, u in tree.paths(decayed).items() if u.any()}
    assert moved == {"blocks/w"}
    assert torch.allclose(decayed["blocks"]["w"], 0.1 * params["blocks"]["w"])


def test_the_learning_rate_counts_and_is_remembered():
    tx = transforms.scale_by_learning_rate(lambda count: 1 / (1 + count))
    g, state = {"w": torch.tensor([6.0])}, tx.init({"w": torch.zeros(1)})
    steps = []
    for _ in range(3):
        updates, state = tx.update(g, state, g)
        steps.append(updates["w"].item())
    assert steps == pytest.approx([-6.0, -3.0, -2.0])
    assert state.num_updates == 3
    assert find(state, ScheduleState).rate == pytest.approx(1 / 3)


def test_ema_is_the_loop(gap, purely):
    tx = combine.chain(transforms.scale_by_learning_rate(schedules.constant(0.1)), transforms.params_ema(0.6))
    params = draw(0)
    state, average = tx.init(params), tree.map(lambda w: w.double(), params)
    for n in range(1, 25):
        updates, state = purely(tx.update, draw(n), state, params)
        params = combine.apply_updates(params, updates)
        keep = min(0.6, (1 + n) / (10 + n))
        average = tree.map(lambda a, w, k=keep: k * a + (1 - k) * w.double(), average, params)
    found = find(state, EmaState).average
    assert gap(found, tree.cast(average, torch.float32)) <= 1e-6
    assert gap(found, params) > 1e-3


def test_the_average_starts_as_a_copy():
    params = draw(0)
    average = transforms.params_ema(0.9).init(params).average
    assert all(a.data_ptr() != w.data_ptr() for a, w in zip(tree.leaves(average), tree.leaves(params), strict=True))


def test_find_looks_into_every_nest():
    inner = EmaState({"w": torch.ones(1)}, torch.zeros(()))
    state = guard.SkipState(((), (ScheduleState(torch.zeros(()), torch.zeros(())), (inner,))), torch.zeros(()))
    assert find(state, EmaState) is inner
    assert find(state, AdamState) is None
