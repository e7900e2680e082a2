"""Optimizers by name: who decays, who is orthogonalised, and what a config may say."""

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.nn import gpt
from slm_fn.optim import (
    adafactor,
    combine,
    diagnostics,
    directions,
    guard,
    muon,
    recipes,
    transforms,
)
from slm_fn.optim.recipes import OptimConfig

CONFIG = gpt.ModelConfig(
    vocab_size=16,
    dim=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_dim=24,
    qk_norm=True,
    tied=False,
)
PARAMS = tree.map(lambda w: w + 0.1, gpt.init(CONFIG, 0))
GRADS = tree.map_with_path(PARAMS, lambda path, w: random.normal(random.fold_in(1, path), w.shape))
MATRICES = gpt.matrix_paths(CONFIG)
FLAT = {"schedule": "constant", "warmup_steps": 0}
NAMES = ("adamw", "muon", "lion", "sgd", "adafactor")


def first(config, grads=GRADS):
    tx = recipes.make_optimizer(config, 10, MATRICES.__contains__)
    return tx.update(grads, tx.init(PARAMS), PARAMS)


def test_only_block_matrices_decay():
    zeros = tree.map(torch.zeros_like, PARAMS)
    for name in NAMES:
        updates, _ = first(
            OptimConfig(name=name, weight_decay=0.5, learning_rate=0.1, **FLAT), zeros
        )
        moved = {path for path, u in tree.named_leaves(updates).items() if u.any()}
        assert moved == set(MATRICES)
        assert torch.allclose(updates["blocks"]["attn"]["q"], -0.05 * PARAMS["blocks"]["attn"]["q"])


def test_only_block_matrices_are_orthogonalised():
    config = OptimConfig(name="muon", weight_decay=0.0, learning_rate=1.0, clip=0.0, **FLAT)
    moved = tree.named_leaves(first(config)[0])
    adam = tree.named_leaves(first(msgspec.structs.replace(config, name="adamw"))[0])
    assert {path for path in moved if not torch.equal(moved[path], adam[path])} == set(MATRICES)
    for path in MATRICES:
        values = torch.linalg.svdvals(moved[path]) / (0.2 * max(moved[path].shape[-2:]) ** 0.5)
        assert 0.5 < values.median() < 1.25


def test_an_untied_head_and_stacked_norms_keep_adam_s_state():
    tx = recipes.make_optimizer(OptimConfig(name="muon"), 10, MATRICES.__contains__)
    muon_state, adam_state = (
        transforms.find_state(tx.init(PARAMS), kind)
        for kind in (muon.MuonState, directions.AdamState)
    )
    assert set(tree.named_leaves(muon_state.mu)) == set(MATRICES)
    assert set(tree.named_leaves(adam_state.mu)) == set(tree.named_leaves(PARAMS)) - set(MATRICES)


def test_clipping_comes_before_the_moments():
    for clip in (0.1, 0.0):
        _, state = first(OptimConfig(clip=clip))
        norm = tree.global_norm(transforms.find_state(state, directions.AdamState).mu) / 0.1
        assert norm == pytest.approx(0.1 if clip else tree.global_norm(GRADS).item(), rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "last"), [("cosine", 0.0), ("linear", 0.0), ("wsd", 0.0), ("constant", 1.0)]
)
def test_schedules_by_name(schedule, last):
    rate = recipes.make_schedule(
        OptimConfig(learning_rate=1.0, schedule=schedule, warmup_steps=4), 40
    )
    assert rate(torch.tensor(40.0)) == pytest.approx(last, abs=1e-6)
    assert rate(torch.tensor(4.0)) == 1


def test_the_average_exists_if_requested():
    assert (
        transforms.find_state(first(OptimConfig(ema_decay=0.9))[1], transforms.EmaState) is not None
    )
    assert transforms.find_state(first(OptimConfig())[1], transforms.EmaState) is None


def test_muon_rate_scales_matrices_alone():
    config = OptimConfig(name="muon", weight_decay=0.0, learning_rate=1.0, **FLAT)
    one, three = (
        tree.named_leaves(first(msgspec.structs.replace(config, muon_rate=r))[0])
        for r in (1.0, 3.0)
    )
    for path in one:
        assert torch.allclose(three[path], one[path] * (3 if path in MATRICES else 1))


def test_one_cycle_rises_while_momentum_falls():
    config = OptimConfig(
        learning_rate=1.0,
        schedule="onecycle",
        rise_fraction=0.5,
        low_momentum=0.8,
        weight_decay=0.0,
    )
    rate = recipes.make_schedule(config, 10)
    assert rate(torch.tensor(4.0)) == 1
    assert rate(torch.tensor(9.0)) == 0
    tx, (rates, dips) = recipes.make_optimizer(config, 10, MATRICES.__contains__), ([], [])
    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(10):
        _, state = tx.update(GRADS, state, params)
        rates.append(transforms.find_state(state, transforms.ScheduleState).rate)
        dips.append(transforms.find_state(state, combine.InjectState).hyper["dip"])
    assert rates.index(max(rates)) == dips.index(max(dips)) == 4
    assert (dips[0], dips[4]) == (0, 1)
    assert dips[-1] < 1e-6
    plain = recipes.make_optimizer(
        msgspec.structs.replace(config, low_momentum=0.0), 10, MATRICES.__contains__
    )
    assert transforms.find_state(plain.init(PARAMS), combine.InjectState) is None


def test_float16_adds_a_loss_scale():
    scaled = recipes.make_optimizer(OptimConfig(), 10, MATRICES.__contains__, torch.float16).init(
        PARAMS
    )
    assert transforms.find_state(scaled, guard.LossScaleState).scale == 2.0**15
    plain = recipes.make_optimizer(OptimConfig(), 10, MATRICES.__contains__, torch.bfloat16).init(
        PARAMS
    )
    assert transforms.find_state(plain, guard.LossScaleState) is None


def test_measures_are_named_in_the_config():
    metrics = diagnostics.read_metrics(
        first(
            OptimConfig(measures=("grad_norms", "noise_scale", "update_ratio"), spike_factor=5.0)
        )[1]
    )
    assert {
        "grad_norm/blocks/attn/q",
        "update_ratio/embed",
        "noise_scale",
        "clip_factor",
        "spikes",
    } <= metrics.keys()
    assert metrics["grad_norm/norm"] == pytest.approx(GRADS["norm"].norm().item(), rel=1e-6)
    assert diagnostics.read_metrics(first(OptimConfig(clip=0.0))[1]) == {}


def test_adafactor_factors_matrices_and_not_vectors():
    state = first(OptimConfig(name="adafactor", b1=0.0))[1]
    factored, full = (
        transforms.find_state(state, kind) for kind in (adafactor.FactoredState, adafactor.RmsState)
    )
    assert set(tree.named_leaves(factored.rows)) == set(MATRICES) | {"embed", "head"}
    assert set(tree.named_leaves(full.nu)) == set(tree.named_leaves(PARAMS)) - set(
        tree.named_leaves(factored.rows)
    )
    assert (
        transforms.find_state(first(OptimConfig(name="adafactor"))[1], adafactor.AverageState)
        is not None
    )


@pytest.mark.parametrize("name", NAMES)
def test_param_groups_name_direction_and_hyper_parameters(name):
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5, muon_rate=2.0)
    groups = recipes.param_groups(config, tree.named_leaves(PARAMS), MATRICES.__contains__)
    assert [set(group.paths) for group in groups] == [
        set(MATRICES),
        set(tree.named_leaves(PARAMS)) - set(MATRICES),
    ]
    assert [group.settings["weight_decay"] for group in groups] == [0.5, 0.0]
    assert groups[0].settings["learning_rate"] == (0.2 if name == "muon" else 0.1)
    assert [group.name for group in groups] == (
        ["muon", "adam"] if name == "muon" else [name, name]
    )
