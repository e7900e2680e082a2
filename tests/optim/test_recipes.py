"""Optimizers by name: who decays, who is orthogonalised, and what a config may say."""

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.nn import gpt
from slm_fn.optim import recipes, transforms
from slm_fn.optim.recipes import OptimConfig

CONFIG = gpt.ModelConfig(
    vocab_size=16, dim=16, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=24, qk_norm=True, tied=False
)
PARAMS = tree.map(lambda w: w + 0.1, gpt.init(CONFIG, 0))
GRADS = tree.update_in(PARAMS, lambda path, w: random.normal(random.fold_in(1, path), w.shape))
MATRICES = gpt.matrices(CONFIG)


def first(config, grads=GRADS):
    tx = recipes.make(config, 10, MATRICES.__contains__)
    return tx.update(grads, tx.init(PARAMS), PARAMS)


def test_only_block_matrices_decay():
    zeros = tree.map(torch.zeros_like, PARAMS)
    for name in ("adamw", "muon"):
        updates, _ = first(OptimConfig(name=name, weight_decay=0.5, schedule="constant", learning_rate=0.1), zeros)
        moved = {path for path, u in tree.paths(updates).items() if u.any()}
        assert moved == set(MATRICES)
        assert torch.allclose(updates["blocks"]["attn"]["q"], -0.05 * PARAMS["blocks"]["attn"]["q"])


def test_only_block_matrices_are_orthogonalised():
    config = OptimConfig(name="muon", weight_decay=0.0, schedule="constant", learning_rate=1.0, clip=0.0)
    moved = tree.paths(first(config)[0])
    adam = tree.paths(first(msgspec.structs.replace(config, name="adamw"))[0])
    assert {path for path in moved if not torch.equal(moved[path], adam[path])} == set(MATRICES)
    for path in MATRICES:
        values = torch.linalg.svdvals(moved[path]) / (0.2 * max(moved[path].shape[-2:]) ** 0.5)
        assert 0.5 < values.median() < 1.25


def test_an_untied_head_and_stacked_norms_keep_adam_s_state():
    tx = recipes.make(OptimConfig(name="muon"), 10, MATRICES.__contains__)
    muon, adam = (transforms.find(tx.init(PARAMS), kind) for kind in (transforms.MuonState, transforms.AdamState))
    assert set(tree.paths(muon.mu)) == set(MATRICES)
    assert set(tree.paths(adam.mu)) == set(tree.paths(PARAMS)) - set(MATRICES)


def test_clipping_comes_before_the_moments():
    for clip in (0.1, 0.0):
        _, state = first(OptimConfig(clip=clip))
        norm = tree.global_norm(transforms.find(state, transforms.AdamState).mu) / 0.1
        assert norm == pytest.approx(0.1 if clip else tree.global_norm(GRADS).item(), rel=1e-4)


@pytest.mark.parametrize(("schedule", "last"), [("cosine", 0.0), ("wsd", 0.0), ("constant", 1.0)])
def test_schedules_by_name(schedule, last):
    rate = recipes.make_schedule(OptimConfig(learning_rate=1.0, schedule=schedule, warmup_steps=4), 40)
    assert rate(torch.tensor(40.0)) == pytest.approx(last, abs=1e-6)
    assert rate(torch.tensor(4.0)) == 1


def test_the_average_is_there_when_asked_for():
    assert transforms.find(first(OptimConfig(ema_decay=0.9))[1], transforms.EmaState) is not None
    assert transforms.find(first(OptimConfig())[1], transforms.EmaState) is None


def test_muon_rate_scales_matrices_alone():
    config = OptimConfig(name="muon", weight_decay=0.0, schedule="constant", learning_rate=1.0)
    one, three = (tree.paths(first(msgspec.structs.replace(config, muon_rate=r))[0]) for r in (1.0, 3.0))
    for path in one:
        assert torch.allclose(three[path], one[path] * (3 if path in MATRICES else 1))
