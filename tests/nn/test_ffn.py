"""Feed-forwards against their formulas, per position; the dual one against a loop over tokens."""

import math

import pytest
import torch

from slm_fn.core import random
from slm_fn.nn import ffn
from slm_fn.nn.config import DualConfig, ModelConfig

SHAPES = {
    "gate": (6, 4),
    "up": (6, 4),
    "down": (4, 6),
    "gate_bias": (6,),
    "up_bias": (6,),
    "down_bias": (4,),
}


def draw(key, hidden=6, bias=False):
    shapes = {name: tuple(hidden if n == 6 else n for n in shape) for name, shape in SHAPES.items()}
    return {
        name: random.normal(random.fold_in(key, name), shape)
        for name, shape in shapes.items()
        if bias or "bias" not in name
    }


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


FORMULAS = {
    "swiglu": lambda gate, up: gate * torch.sigmoid(gate) * up,
    "geglu": lambda gate, up: gelu(gate) * up,
    "gelu": lambda _, up: gelu(up),
    "relu2": lambda _, up: torch.where(up > 0, up**2, 0),
}


@pytest.mark.parametrize("bias", [False, True], ids=["", "biases"])
@pytest.mark.parametrize("name", FORMULAS)
def test_each_equals_its_formula(name, bias, purely):
    params, x = draw(1, bias=bias), random.normal(9, (2, 3, 4))
    gate, up = (x @ params[part].T + params.get(f"{part}_bias", 0) for part in ("gate", "up"))
    want = FORMULAS[name](gate, up) @ params["down"].T + params.get("down_bias", 0)
    got, route = purely(ffn.apply, ModelConfig(ffn=name), params, x)
    assert torch.allclose(got, want, atol=1e-5)
    assert route is None


@pytest.mark.parametrize("name", FORMULAS)
def test_positions_are_independent(name):
    params, x = draw(1), random.normal(9, (2, 3, 4))
    alone = torch.stack(
        [ffn.apply(ModelConfig(ffn=name), params, x[:, t : t + 1])[0][:, 0] for t in range(3)], 1
    )
    assert torch.allclose(ffn.apply(ModelConfig(ffn=name), params, x)[0], alone, atol=1e-6)


DUAL = {"router": 2 * random.normal(1, (2, 4)), "lite": draw(2, hidden=3), "expert": draw(3)}
ROWS = random.normal(9, (3, 16, 4))


def dual(training=False, x=ROWS, **options):
    return ffn.dual(ModelConfig(ffn="dual", dual=DualConfig(**options)), DUAL, x, training)


def dual_by_loop(capacity, temperature=1.0):
    """One token after another: the path it is routed to, whether it is dropped, its output."""
    out, route = torch.zeros_like(ROWS), torch.zeros(*ROWS.shape[:2], 3)
    for b, row in enumerate(ROWS):
        num_expert = 0
        for t, x in enumerate(row):
            lite, expert = (DUAL["router"] @ x / temperature).softmax(0)
            if expert > lite and num_expert >= capacity:
                route[b, t] = torch.tensor([expert, 1, 1])
                continue
            num_expert += int(expert > lite)
            path = ffn.apply(
                ModelConfig(), DUAL["expert" if expert > lite else "lite"], x[None, None]
            )[0][0, 0]
            out[b, t], route[b, t] = (
                path * max(lite, expert),
                torch.tensor([expert, float(expert > lite), 0]),
            )
    return out, route


@pytest.mark.parametrize(
    ("training", "options", "capacity"),
    [
        (False, {"drop": True}, 16),  # nothing is dropped in inference
        (True, {"drop": False}, 16),
        (True, {"drop": True, "capacity_factor": 1.0, "expert_share": 0.25}, 4),
        (True, {"drop": True, "capacity_factor": 1.1, "expert_share": 0.25, "temperature": 0.3}, 5),
        (True, {"drop": True, "capacity_factor": 9.0}, 16),
    ],
)
def test_dual_equals_the_loop(training, options, capacity, purely):
    got, route = purely(dual, training, **options)
    want, want_route = dual_by_loop(capacity, options.get("temperature", 1.0))
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(route, want_route, atol=1e-6)
    # More tokens are routed to the expert than the smallest capacity.
    assert route[..., 1].sum(-1).min() > 4
    assert (route[..., 2].sum() > 0) == (training and capacity < 16)


def test_capacity_depends_on_earlier_tokens_only():
    options = {"training": True, "drop": True, "expert_share": 0.25, "capacity_factor": 1.0}
    later = torch.cat([ROWS[:, :9], random.normal(10, (3, 7, 4))], 1)
    assert torch.equal(dual(**options)[0][:, :9], dual(x=later, **options)[0][:, :9])
    earlier = torch.cat([random.normal(10, (3, 7, 4)), ROWS[:, 7:]], 1)
    assert not torch.equal(dual(**options)[1][:, 7:], dual(x=earlier, **options)[1][:, 7:])


def test_the_expert_computes_no_more_tokens_than_its_capacity(monkeypatch):
    shapes = []
    monkeypatch.setattr(ffn, "gated_mlp", lambda p, x, f: shapes.append(tuple(x.shape)) or x)
    dual(training=True, drop=True, expert_share=0.25, capacity_factor=1.0)
    assert shapes == [(3, 16, 4), (3, 4, 4)]


def test_the_router_has_a_gradient():
    router = DUAL["router"].clone().requires_grad_()
    config = ModelConfig(ffn="dual", dual=DualConfig(drop=True))
    for decoding in (False, True):
        out, _ = ffn.dual(config, {**DUAL, "router": router}, ROWS, decoding=decoding)
        (slope,) = torch.autograd.grad(out.square().sum(), router)
        assert slope.abs().min() > 1e-3
