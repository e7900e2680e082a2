"""Any torch module as a pure function, trained by `step_with` exactly as torch trains it."""

import pytest
import torch
from torch import nn

from slm_fn.core import tree
from slm_fn.core.compose import pipe
from slm_fn.core.grads import value_and_grad
from slm_fn.loss.lm import next_token_from_logits
from slm_fn.nn.module import from_module
from slm_fn.optim import combine, directions, schedules, transforms
from slm_fn.train.step import init_state, step_with


class Tiny(nn.Module):
    """Embedding tied to the head, a norm, and a buffer that is read."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(48, 16)
        self.mix = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 48, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("shift", torch.linspace(-1, 1, 16))

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.head(self.norm(x + self.mix(x + self.shift)))


@pytest.fixture
def tiny():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny().eval()


def test_apply_equals_the_module(tiny, batch, config, purely):
    tokens = batch(config).tokens % 48
    params, apply = from_module(tiny)
    out, past = purely(apply, params, tokens)
    assert past is None
    assert torch.equal(out, tiny(tokens))
    doubled, _ = apply(tree.map(lambda w: 2 * w, params), tokens)
    assert not torch.equal(doubled, out)


def test_paths_are_the_module_s_names_and_a_tied_weight_is_one_leaf(tiny):
    params, _ = from_module(tiny)
    assert list(tree.named_leaves(params)) == [
        name.replace(".", "/") for name, _ in tiny.named_parameters()
    ]
    assert "head" not in params


def test_the_module_is_read_once_and_never_changed(tiny, batch, config):
    before = {name: x.clone() for name, x in tiny.state_dict().items()}
    params, apply = from_module(tiny)
    rows = batch(config)._replace(tokens=batch(config).tokens % 48)
    value_and_grad(next_token_from_logits(apply))(params, rows)
    assert all(torch.equal(x, before[name]) for name, x in tiny.state_dict().items())
    assert all(p.grad is None for p in tiny.parameters())
    out, _ = apply(params, rows.tokens)
    with torch.no_grad():
        for x in (*tiny.parameters(), *tiny.buffers()):
            x.zero_()
    assert torch.equal(apply(params, rows.tokens)[0], out)


def test_a_module_that_updates_buffers_becomes_a_pure_function(purely, same):
    module = nn.Sequential(
        nn.Embedding(8, 4), nn.Flatten(), nn.BatchNorm1d(12), nn.Linear(12, 8)
    ).train()
    params, apply = from_module(module)
    tokens = torch.arange(6).view(2, 3)
    before = {name: x.clone() for name, x in module.named_buffers()}
    first = purely(apply, params, tokens)[0]
    assert same(first, apply(params, tokens)[0])
    assert same(dict(module.named_buffers()), before)
    module.eval()
    assert same(apply(params, tokens)[0], module(tokens))


def test_training_equals_training_by_torch(tiny, batch, config, gap):
    rows = [batch(config, key=key) for key in range(10)]
    rows = [b._replace(tokens=b.tokens % 48) for b in rows]
    params, apply = from_module(tiny)
    tx = combine.chain(
        directions.scale_by_adam(0.9, 0.999),
        transforms.add_decayed_weights(0.1, lambda path: True),
        transforms.scale_by_learning_rate(schedules.constant(1e-3)),
    )
    step, state = (
        pipe(next_token_from_logits, value_and_grad, step_with(tx))(apply),
        init_state(params, tx),
    )

    peer = torch.optim.AdamW(
        tiny.parameters(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1
    )
    for b in rows:
        state, metrics = step(state, b)
        logp = tiny(b.tokens[:, :-1]).log_softmax(-1).gather(-1, b.tokens[:, 1:, None]).squeeze(-1)
        loss = -(logp * b.mask).sum() / b.mask.sum()
        assert abs(loss - metrics["loss"]) < 1e-6 * loss
        peer.zero_grad()
        loss.backward()
        peer.step()
    assert gap(state.params, from_module(tiny)[0]) <= 1e-6
