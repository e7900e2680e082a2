"""Adam and momentum against torch.optim, Lion against the paper's formulas."""

import pytest
import torch
from torch import nn

from slm_fn.core import random, tree
from slm_fn.optim import combine, directions, schedules, transforms
from slm_fn.optim.directions import AdamState, LionState
from slm_fn.optim.transforms import find_state

SHAPES = {"blocks": {"w": (3, 4, 5), "norm": (3, 4)}, "embed": (7, 4), "head": (7, 4), "norm": (4,)}
IS_MATRIX = {"blocks/w"}.__contains__


def draw(key, std=1.0):
    return tree.map_with_path(
        SHAPES, lambda path, shape: random.normal(random.fold_in(key, path), shape, std)
    )


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.95), (0.0, 0.99)])
def test_adamw_equals_torch_s(b1, b2, gap, purely):
    schedule = schedules.warmup_cosine(3e-3, 4, 20)
    tx = combine.chain(
        directions.scale_by_adam(b1, b2, 1e-8),
        transforms.add_decayed_weights(0.3, IS_MATRIX),
        transforms.scale_by_learning_rate(schedule),
    )
    params = draw(0)
    twins = {path: nn.Parameter(w.clone()) for path, w in tree.named_leaves(params).items()}
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
        for path, g in tree.named_leaves(grads).items():
            twins[path].grad = g
        peer.step()
    assert gap(params, tree.from_named_leaves(params, twins)) <= 1e-6
    assert find_state(state, AdamState).num_updates == 20


def test_adam_s_first_direction_is_the_sign_at_any_scale():
    # mu_hat / sqrt(nu_hat) is g / |g|: exact only if the bias corrections are.
    adam = directions.scale_by_adam(0.9, 0.999, 0.0)
    for size in (1e-12, 1.0, 1e12):
        g = {"w": size * torch.tensor([-3.0, 2.0, 0.5])}
        updates, _ = adam.update(g, adam.init(g), g)
        assert (updates["w"] - torch.tensor([-1.0, 1.0, 1.0])).abs().max() < 1e-6


def test_a_beta_may_be_a_tensor(gap):
    for b1 in (0.0, 0.9):
        plain, held = directions.scale_by_adam(b1), directions.scale_by_adam(torch.tensor(b1))
        state, params = plain.init(draw(0)), draw(0)
        for n in range(3):
            want, after = plain.update(draw(n + 1), state, params)
            assert gap(held.update(draw(n + 1), state, params)[0], want) < 1e-5
            state = after


@pytest.mark.parametrize("b1", [0.9, torch.tensor(0.9)])
def test_lion_equals_the_paper_s(b1, gap, purely):
    lion, params = directions.scale_by_lion(b1, 0.99), draw(0)
    tx = combine.chain(
        lion,
        transforms.add_decayed_weights(0.3, IS_MATRIX),
        transforms.scale_by_learning_rate(schedules.constant(0.01)),
    )
    state, w = tx.init(params), {path: p.clone() for path, p in tree.named_leaves(params).items()}
    m = {path: torch.zeros_like(p) for path, p in w.items()}
    for n in range(10):
        grads = draw(100 + n)
        updates, state = purely(tx.update, grads, state, params)
        params = combine.apply_updates(params, updates)
        for path, g in tree.named_leaves(grads).items():  # arXiv 2302.06675, program 1
            c = 0.9 * m[path] + 0.1 * g
            w[path] = w[path] - 0.01 * (torch.sign(c) + (0.3 if IS_MATRIX(path) else 0.0) * w[path])
            m[path] = 0.99 * m[path] + 0.01 * g
    assert gap(params, tree.from_named_leaves(params, w)) <= 1e-6
    assert gap(find_state(state, LionState).mu, tree.from_named_leaves(params, m)) <= 1e-6


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("momentum", "decay"), [(0.9, 0.0), (0.9, 0.3), (0.5, 0.3)])
def test_sgd_equals_torch_s(momentum, nesterov, decay, gap, purely):
    # torch adds weight decay to the gradient; so does this chain, with decay before the direction.
    tx = combine.chain(
        transforms.add_decayed_weights(decay, lambda path: True),
        directions.scale_by_momentum(momentum, nesterov),
        transforms.scale_by_learning_rate(schedules.constant(0.05)),
    )
    params = draw(0)
    twins = {path: nn.Parameter(w.clone()) for path, w in tree.named_leaves(params).items()}
    peer = torch.optim.SGD(
        twins.values(), lr=0.05, momentum=momentum, nesterov=nesterov, weight_decay=decay
    )
    state = tx.init(params)
    for n in range(10):
        grads = draw(100 + n)
        updates, state = purely(tx.update, grads, state, params)
        params = combine.apply_updates(params, updates)
        for path, g in tree.named_leaves(grads).items():
            twins[path].grad = g
        peer.step()
    assert gap(params, tree.from_named_leaves(params, twins)) <= 1e-6


@pytest.mark.parametrize(
    "make",
    [
        lambda beta: directions.scale_by_adam(beta),
        lambda beta: directions.scale_by_lion(beta),
        lambda beta: directions.scale_by_momentum(beta, nesterov=True),
    ],
)
def test_bf16_stays_bf16(make):
    params = tree.cast(draw(0), torch.bfloat16)
    for beta in (0.9, torch.tensor(0.9)):
        tx = make(beta)
        updates, state = tx.update(params, tx.init(params), params)
        kept = [x for x in tree.leaves((updates, state)) if x.ndim]
        assert {x.dtype for x in kept} == {torch.bfloat16}
