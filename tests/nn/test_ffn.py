"""SwiGLU against its formula, one place at a time."""

import torch

from slm_fn.core import random
from slm_fn.nn.ffn import swiglu

PARAMS = {
    name: random.normal(i, shape)
    for i, (name, shape) in enumerate({"gate": (6, 4), "up": (6, 4), "down": (4, 6)}.items())
}


def test_swiglu_is_its_formula(purely):
    x = random.normal(9, (2, 3, 4))
    gate, up = x @ PARAMS["gate"].T, x @ PARAMS["up"].T
    want = (gate * torch.sigmoid(gate) * up) @ PARAMS["down"].T
    assert torch.allclose(purely(swiglu, PARAMS, x), want, atol=1e-5)


def test_places_do_not_meet():
    x = random.normal(9, (2, 3, 4))
    alone = torch.stack([swiglu(PARAMS, x[:, t : t + 1])[:, 0] for t in range(3)], 1)
    assert torch.allclose(swiglu(PARAMS, x), alone, atol=1e-6)
