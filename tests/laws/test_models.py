"""Laws of every decoder shape. A new shape joins MODELS and must satisfy all of them."""

import math
from functools import partial

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.core import random, tree
from slm_fn.core.grads import accumulate, remat, value_and_grad
from slm_fn.core.types import LMBatch, SeededBatch
from slm_fn.lift.dropout_seeds import with_dropout_seeds
from slm_fn.loss.lm import next_token
from slm_fn.nn import cache, gpt, ops

SMALL = partial(
    gpt.ModelConfig, vocab_size=64, dim=32, num_layers=2, num_heads=4, ffn_dim=48, context=24
)
DUAL, LINEAR = gpt.DualConfig, gpt.RopeScaling("linear", factor=2.0)
YARN = gpt.RopeScaling("yarn", factor=4.0, beta_fast=2.0, beta_slow=0.5)
MODELS = {
    "mha": SMALL(num_kv_heads=4),
    "gqa-none-relu2": SMALL(num_kv_heads=2, positions="none", ffn="relu2"),
    "mqa-untied": SMALL(num_kv_heads=1, tied=False),
    "one-head-one-layer": SMALL(num_heads=1, num_kv_heads=1, num_layers=1, rope_theta=500.0),
    "gpt2": SMALL(norm="layer", ffn="gelu", positions="learned", biases="all", dropout=0.2),
    "gqa-layer-geglu-linear": SMALL(num_kv_heads=2, norm="layer", ffn="geglu", rope_scaling=LINEAR),
    "relu2-ntk-qkv": SMALL(ffn="relu2", biases="qkv", rope_scaling=gpt.RopeScaling("ntk", 3.0)),
    "gqa-yarn-window-qk_norm": SMALL(num_kv_heads=2, rope_scaling=YARN, window=5, qk_norm=True),
    "gemma2": SMALL(num_kv_heads=2, ffn="geglu", window=7, attn_softcap=1.5, logit_softcap=2.0),
    "alibi-mha": SMALL(positions="alibi", biases="all"),
    "alibi-gqa-six-heads-window": SMALL(
        dim=30, num_heads=6, num_kv_heads=3, positions="alibi", window=4, dropout=0.1
    ),
    "alibi-softcaps-geglu": SMALL(
        num_kv_heads=1,
        positions="alibi",
        ffn="geglu",
        attn_softcap=1.0,
        logit_softcap=2.0,
        tied=False,
    ),
    "dual": SMALL(num_kv_heads=2, ffn="dual"),
    "dual-drop-everything": SMALL(
        num_kv_heads=1,
        ffn="dual",
        dual=DUAL(drop=True, capacity_factor=1.0, temperature=0.5, small_ratio=0.25),
        norm="layer",
        positions="learned",
        window=6,
        biases="all",
        attn_softcap=3.0,
        logit_softcap=4.0,
        dropout=0.3,
        qk_norm=True,
        tied=False,
    ),
}
# Together with the compiled block below, these cover every option.
COMPILED = ["gpt2", "gqa-yarn-window-qk_norm", "alibi-softcaps-geglu"]
LENGTH = 12


@pytest.fixture(params=MODELS)
def decoder(request, rough, batch):
    """(config, apply, parameters, tokens)"""
    config = MODELS[request.param]
    return (
        config,
        partial(gpt.apply, config),
        rough(config),
        batch(config, rows=4, length=LENGTH - 1).tokens,
    )


def project_logits(direction):
    """A head with a constant weight, tied or not: one linear function of the logits."""

    def head(weight, hidden, softcap=0.0):
        return ops.logits(weight.detach(), hidden, softcap) @ direction

    return head


def receptive_field(config):
    """Number of positions that affect a position through all layers."""
    return config.num_layers * (config.window - 1) + 1 if config.window else config.context


def without_zero_gradients(result):
    """`(value and aux, gradients)` without key biases whose gradient is zero but for rounding.

    Attention does not change if the same vector is added to all keys.
    """
    value_and_aux, grads = result
    grads = tree.named_leaves(grads)
    key_biases = [path for path in grads if path.endswith("/k_bias")]
    for path in key_biases:
        if grads[path].abs().max() < 1e-7:
            del grads[path]
    return value_and_aux, grads


def training_arguments(config, rows=4):
    """The arguments of `apply` in training, if they differ from those in inference."""
    return (
        {"dropout_seeds": random.row_seeds(5, first_row=8, num_rows=rows)}
        if gpt.needs_dropout_seeds(config)
        else {}
    )


def emptied(past):
    """The cache with length 0 for every sequence; its entries stay."""
    return past._replace(length=torch.zeros_like(past.length))


def select_rows(past, rows):
    """The cache of some sequences in the given order."""
    return cache.KVCache(past.k[:, rows], past.v[:, rows], past.length[rows])


@pytest.mark.parametrize("parts", [(LENGTH,), (7, 5), (3, 4, 1, 1, 3), (1,) * LENGTH], ids=str)
def test_cached_decoding_equals_the_full_forward(decoder, parts, purely):
    config, apply, params, tokens = decoder
    full, _ = apply(params, tokens)
    past = gpt.init_cache(config, params, batch_size=4, max_len=LENGTH + 3)
    outputs = []
    for part in tokens.split(parts, dim=1):
        logits, past = purely(apply, params, part, past)
        outputs.append(logits)
    assert past.length.tolist() == [LENGTH] * 4
    assert (torch.cat(outputs, 1) - full).abs().max() <= 1e-4


def test_rows_of_different_lengths_share_a_cache(decoder):
    config, apply, params, tokens = decoder
    full, _ = apply(params, tokens)
    # Entries beyond a row's length are stale: they must have no effect.
    _, past = apply(params, tokens.flip(1), gpt.init_cache(config, params, batch_size=4))
    _, past = apply(params, tokens[:, :8], emptied(past))
    lengths = torch.tensor([3, 8, 1, 5])
    past, rows = past._replace(length=lengths), torch.arange(4)
    for t in range(LENGTH - 8):
        logits, past = apply(params, tokens[rows, lengths + t][:, None], past)
        assert (logits[:, 0] - full[rows, lengths + t]).abs().max() <= 1e-4
    assert past.length.tolist() == (lengths + LENGTH - 8).tolist()


def test_forked_and_freed_rows_continue_independently(decoder):
    config, apply, params, tokens = decoder
    full, _ = apply(params, tokens)
    _, past = apply(params, tokens[:, :6], gpt.init_cache(config, params, batch_size=4))
    order = torch.tensor([2, 2, 0])
    logits, _ = apply(params, tokens[order, 6:9], select_rows(past, order))
    assert (logits - full[order, 6:9]).abs().max() <= 1e-4
    logits, _ = apply(params, tokens[:, :3], emptied(past))
    assert (logits - full[:, :3]).abs().max() <= 1e-4


@pytest.mark.parametrize("training", [False, True], ids=["", "training"])
def test_positions_outside_the_causal_window_have_gradient_zero(decoder, training):
    config, apply, params, _ = decoder
    mode = training_arguments(config, rows=1) if training else {}
    tokens = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(0))[
        None, :LENGTH
    ]
    direction = random.normal(1, (config.vocab_size,))

    def read(embedding):
        # All tokens differ, so each embedding row belongs to one position.
        return apply(
            {**params, "embed": embedding}, tokens, head=project_logits(direction), **mode
        )[0][0]

    jacobian_TVD = torch.autograd.functional.jacobian(read, params["embed"])
    depends_TS = jacobian_TVD[:, tokens[0]].abs().sum(-1) > 0
    want_TS = torch.ones(LENGTH, LENGTH).tril().triu(1 - receptive_field(config)).bool()
    # In training, dropout removes dependencies but never adds one.
    assert not (depends_TS & ~want_TS).any() if mode else torch.equal(depends_TS, want_TS)


def test_plain_and_fused_attention_agree(decoder, gap):
    config, apply, params, tokens = decoder
    if config.attn_softcap:
        with pytest.raises(ValueError, match="attn_softcap needs the plain attention backend"):
            apply(params, tokens, backend="fused")
        return
    rows = LMBatch(tokens, torch.ones(4, LENGTH - 1))
    of = {
        backend: value_and_grad(next_token(partial(apply, backend=backend)))(params, rows)
        for backend in ("plain", "fused")
    }
    assert gap(without_zero_gradients(of["plain"]), without_zero_gradients(of["fused"])) <= 1e-5
    past = gpt.init_cache(config, params, batch_size=4)._replace(length=torch.tensor([0, 2, 5, 1]))
    plain, fused = (
        apply(params, tokens[:, :4], past, backend=backend)[0] for backend in ("plain", "fused")
    )
    assert (plain - fused).abs().max() <= 1e-4


def test_remat_changes_memory_and_no_number(decoder, same, purely):
    config, apply, params, tokens = decoder
    rows, apply = (
        LMBatch(tokens, torch.ones(4, LENGTH - 1)),
        partial(apply, **training_arguments(config)),
    )
    passes = []

    def counted(block):
        def run(*args):
            passes.append(1)
            return block(*args)

        return remat(run)

    kept = value_and_grad(next_token(apply))(params, rows)
    again = purely(value_and_grad(next_token(partial(apply, lift_block=counted))), params, rows)
    assert same(kept, again)
    assert (
        len(passes) == 2 * decoder[0].num_layers
    )  # each block ran forward, and again on the way back


def test_apply_commutes_with_vmap_over_parameters(decoder, rough):
    config, apply, _, tokens = decoder
    members = [rough(config, key) for key in range(3)]
    apply = partial(apply, **training_arguments(config))
    together = torch.func.vmap(lambda params: apply(params, tokens)[0])(tree.stack(*members))
    for logits, member in zip(together, members, strict=True):
        assert (logits - apply(member, tokens)[0]).abs().max() <= 1e-5


@pytest.mark.parametrize("training", [False, True], ids=["", "training"])
def test_a_row_does_not_depend_on_its_batch(decoder, training, gap):
    """Alone, in a batch, by vmap, and its gradient: nothing depends on the other rows."""
    config, apply, params, tokens = decoder
    mode = training_arguments(config) if training else {}
    full = apply(params, tokens, **mode)[0]
    for row in range(4):
        alone = {name: seeds[row : row + 1] for name, seeds in mode.items()}
        assert (apply(params, tokens[row : row + 1], **alone)[0] - full[row]).abs().max() <= 1e-5
    each = torch.func.vmap(
        lambda row, *seeds: apply(params, row[None], **dict(zip(mode, seeds, strict=True)))[0][0]
    )
    assert (each(tokens, *(seeds[:, None] for seeds in mode.values())) - full).abs().max() <= 1e-5
    loss = with_dropout_seeds(next_token) if mode else next_token
    rows = LMBatch(tokens, torch.arange(4 * (LENGTH - 1)).reshape(4, -1) % 3.0)
    batch = SeededBatch(rows, mode["dropout_seeds"]) if mode else rows
    engines = [value_and_grad(loss(apply), engine=engine) for engine in ("autograd", "func")]
    whole, func, parts = (
        *(vg(params, batch) for vg in engines),
        accumulate(2)(engines[0])(params, batch),
    )
    assert gap(without_zero_gradients(whole), without_zero_gradients(func)) <= 1e-5
    assert gap(without_zero_gradients(whole), without_zero_gradients(parts)) <= 1e-5


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_apply_equals_apply(name, rough, batch, no_shape_checks):
    config = msgspec.structs.replace(MODELS[name], num_layers=1)
    params, tokens = rough(config), batch(config, length=LENGTH - 1).tokens
    marks = {"segments": SEGMENTS} if name == COMPILED[0] else {}
    apply = partial(gpt.apply, config, **training_arguments(config), **marks)
    compiled = torch.compile(
        lambda params, tokens: apply(params, tokens)[0], backend="aot_eager", fullgraph=True
    )
    assert torch.equal(compiled(params, tokens), apply(params, tokens)[0])


def test_one_compiled_block_serves_every_layer(no_shape_checks, rough, batch):
    config = msgspec.structs.replace(MODELS["dual-drop-everything"], num_layers=4)
    params, tokens, seeds = rough(config), batch(config, rows=2).tokens, random.row_seeds(0, 0, 2)
    compiled = []

    def count(graph, _):
        compiled.append(graph)
        return graph

    apply = partial(
        gpt.apply, config, lift_block=partial(torch.compile, backend=count, fullgraph=True)
    )
    assert torch.equal(
        apply(params, tokens, dropout_seeds=seeds)[0],
        gpt.apply(config, params, tokens, dropout_seeds=seeds)[0],
    )
    assert len(compiled) == 1


def test_dropout_applies_in_training_alone_and_keeps_the_mean(rough, batch):
    config = MODELS["gpt2"]
    params, tokens = rough(config), batch(config, rows=1, length=1).tokens[:, :1]
    quiet = gpt.apply(config, params, tokens, head=lambda weight, hidden: hidden)[0]
    seen = {}
    rows = 400

    def tap(name, x):
        seen[name] = x
        return x

    gpt.apply(
        config, params, tokens.expand(rows, 1), dropout_seeds=random.row_seeds(1, 0, rows), tap=tap
    )
    for name in ("0/attn", "0/ffn", "1/attn", "1/ffn"):
        assert abs((seen[name] == 0).float().mean() - config.dropout) < 0.02
    assert not torch.equal(seen["0/attn"][0] == 0, seen["1/attn"][0] == 0)
    assert not torch.equal(seen["0/attn"][0] == 0, seen["0/ffn"][0] == 0)
    assert not torch.equal(seen["0/attn"][0] == 0, seen["0/attn"][1] == 0)
    assert (seen["final"] - quiet).abs().max() > 0.1
    with pytest.raises(ValueError, match="dropout_seeds are for training"):
        gpt.apply(
            config,
            params,
            tokens,
            gpt.init_cache(config, params, 1),
            dropout_seeds=random.row_seeds(0, 0, 1),
        )


def alone(apply, params, tokens, segments, **kwargs):
    """The logits of every text run separately, concatenated in order."""
    rows = []
    for row, marks in zip(tokens, segments, strict=True):
        lengths = torch.unique_consecutive(marks, return_counts=True)[1].tolist()
        rows.append(
            torch.cat([apply(params, part[None], **kwargs)[0][0] for part in row.split(lengths)])
        )
    return torch.stack(rows)


SEGMENTS = torch.tensor(
    [[0] * LENGTH, [0] * 5 + [1] * 7, list(range(LENGTH)), [3, 3, 3, 1, 2, 2, 2, 2, 2, 2, 1, 1]]
)  # one text, two, one per token, any ids: a repeated id is another text


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_a_text_in_a_packed_row_equals_the_text_alone(decoder, backend, purely):
    config, apply, params, tokens = decoder
    backend = "auto" if config.attn_softcap else backend
    packed = purely(apply, params, tokens, segments=SEGMENTS, backend=backend)[0]
    assert (packed - alone(apply, params, tokens, SEGMENTS, backend=backend)).abs().max() <= 1e-5
    plain = apply(params, tokens, backend=backend)[0]
    assert (packed[0] - plain[0]).abs().max() <= 1e-5
    assert (packed[1, 5:] - plain[1, 5:]).abs().max() > 1e-2  # and without segments it is not


def test_a_text_s_gradient_stays_inside_it(decoder):
    config, apply, params, _ = decoder
    tokens = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(0))[
        None, :LENGTH
    ]
    direction = random.normal(1, (config.vocab_size,))

    def read(embedding):
        return apply(
            {**params, "embed": embedding},
            tokens,
            head=project_logits(direction),
            segments=SEGMENTS[3:],
        )[0][0]

    jacobian_TVD = torch.autograd.functional.jacobian(read, params["embed"])
    depends_TS = jacobian_TVD[:, tokens[0]].abs().sum(-1) > 0
    runs = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3])
    assert torch.equal(depends_TS, (runs[:, None] == runs).tril().triu(1 - receptive_field(config)))


def test_segments_pass_through_vmap_and_both_engines(decoder, gap):
    _, apply, params, tokens = decoder
    apply_params = partial(apply, params)
    each = torch.func.vmap(lambda row, marks: apply_params(row[None], segments=marks[None])[0][0])(
        tokens, SEGMENTS
    )
    assert (each - apply_params(tokens, segments=SEGMENTS)[0]).abs().max() <= 1e-5
    rows = LMBatch(tokens, torch.ones(4, LENGTH - 1))
    loss = next_token(partial(apply, segments=SEGMENTS[:, :-1]))
    engines = [value_and_grad(loss, engine=engine)(params, rows) for engine in ("autograd", "func")]
    assert gap(*(without_zero_gradients(result) for result in engines)) <= 1e-5


def test_taps_see_every_activation_and_may_replace_it(decoder):
    config, apply, params, tokens = decoder
    seen = []
    apply(params, tokens, tap=lambda name, x: seen.append(name) or x)
    assert seen == [f"{i}/{part}" for i in range(config.num_layers) for part in ("attn", "ffn")] + [
        "final"
    ]
    silent = apply(
        params, tokens, tap=lambda name, x: x if name == "final" else torch.zeros_like(x)
    )[0]
    writers = ("/o", "/down", "/o_bias", "/down_bias")
    fresh = tree.map_with_path(
        params, lambda path, w: torch.zeros_like(w) if path.endswith(writers) else w
    )
    assert torch.equal(silent, apply(fresh, tokens)[0])


def test_specs_counts_and_init_describe_the_same_tree(decoder):
    config, _, params, _ = decoder
    fresh = gpt.init(config, key=5)
    assert tree.num_elements(fresh) == gpt.count_params(config)
    assert {path: w.shape for path, w in tree.named_leaves(fresh).items()} == {
        p: w.shape for p, w in tree.named_leaves(params).items()
    }
    in_blocks = {
        path
        for path, w in tree.named_leaves(fresh).items()
        if path.startswith("blocks/") and w.ndim == 3
    }
    assert gpt.matrix_paths(config) == in_blocks - {"blocks/ffn/router"}


SHAPES = [(32, 64), (64, 256), (256, 256), (192, 4096), (384, 1024), (768, 2048), (1024, 4096)]


def first_loss(config):
    """The loss of a fresh model on random tokens, divided by ln V."""
    tokens = (random.uniform(1, (4, 65)) * config.vocab_size).long()
    loss, _ = next_token(partial(gpt.apply, config))(
        gpt.init(config, key=3), LMBatch(tokens, torch.ones(4, 64))
    )
    return (loss / math.log(config.vocab_size)).item()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("dim", "vocab_size"), SHAPES)
def test_a_fresh_model_predicts_uniformly(dim, vocab_size, tied):
    shape = {
        "vocab_size": vocab_size,
        "dim": dim,
        "num_layers": 2,
        "ffn_dim": 16,
        "context": 64,
        "tied": tied,
    }
    assert abs(first_loss(gpt.ModelConfig(**shape)) - 1) < 0.02
    assert (
        abs(
            first_loss(gpt.ModelConfig(**shape, positions="learned", norm="layer", biases="all"))
            - 1
        )
        < 0.02
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_model_of_every_option_predicts_uniformly(name):
    config = msgspec.structs.replace(MODELS[name], context=64, vocab_size=256, logit_softcap=0.0)
    assert abs(first_loss(config) - 1) < 0.02
    assert abs(first_loss(msgspec.structs.replace(config, logit_softcap=30.0)) - 1) < 0.02


def test_common_shapes_start_at_a_quarter():
    for dim, vocab_size in [(192, 4096), (384, 8192), (768, 32000)]:
        config = gpt.ModelConfig(
            vocab_size=vocab_size, dim=dim, num_heads=dim // 64, num_kv_heads=dim // 64
        )
        assert gpt.param_specs(config)["embed"].init_std == 0.25 * dim**-0.5


def draw_config(draw):
    """Any valid config: options must be independent of each other, beyond those in MODELS."""

    def pick(*options):
        return draw(st.sampled_from(options))

    heads = pick(1, 2, 3, 4)
    positions, ffn_kind = (
        pick("rope", "rope", "alibi", "learned", "none"),
        pick("swiglu", "geglu", "gelu", "relu2", "dual"),
    )
    scaling = (
        pick(gpt.RopeScaling(), LINEAR, YARN, gpt.RopeScaling("ntk", 2.0))
        if positions == "rope"
        else gpt.RopeScaling()
    )
    kv_heads = pick(*(k for k in (1, 2, 3, 4) if heads % k == 0))
    norm = pick("rms", "layer")
    dual = DUAL()
    if ffn_kind == "dual":
        dual = DUAL(drop=pick(False, True), expert_share=pick(0.25, 0.5))
    return gpt.check(
        SMALL(
            dim=8 * heads,
            num_heads=heads,
            num_kv_heads=kv_heads,
            norm=norm,
            ffn=ffn_kind,
            positions=positions,
            rope_scaling=scaling,
            dual=dual,
            qk_norm=pick(False, True),
            tied=pick(False, True),
            window=pick(0, 1, 4, 24),
            dropout=pick(0.0, 0.2),
            attn_softcap=pick(0.0, 2.0),
            logit_softcap=pick(0.0, 3.0),
            biases=pick("none", "qkv", "all"),
        )
    )


@settings(max_examples=12)
@given(st.data())
def test_any_options_go_together(rough, batch, data):
    config = draw_config(data.draw)
    params, tokens = rough(config), batch(config, rows=2, length=LENGTH - 1).tokens
    full, _ = gpt.apply(config, params, tokens)
    first, past = gpt.apply(
        config, params, tokens[:, :5], gpt.init_cache(config, params, batch_size=2)
    )
    second, past = gpt.apply(config, params, tokens[:, 5:6], past)
    third, _ = gpt.apply(config, params, tokens[:, 6:], past)
    assert (torch.cat([first, second, third], 1) - full).abs().max() <= 1e-4
    mode = training_arguments(config, rows=2)
    later = torch.cat([tokens[:, :7], tokens[:, 7:].flip(1)], 1)
    before, after = (gpt.apply(config, params, row, **mode)[0][:, :7] for row in (tokens, later))
    assert (before - after).abs().max() <= 1e-5
