"""The decoder's init, cache and calls; its laws are in tests/laws/test_models.py."""

import math
from functools import partial

import msgspec
import pytest
import torch

from slm_fn.core import random, tree
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.nn.positions import rope_frequencies, rope_table


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_heads": 0}, "num_heads"),
        ({"dim": 36}, r"dim \(36\) / model.num_heads \(8\)"),
        ({"dim": 40}, "must be an even integer"),  # 5 channels are not pairs
        ({"num_kv_heads": 3}, r"multiple of model.num_kv_heads \(3\)"),
    ],
)
def test_a_config_that_cannot_be_built_names_its_field(change, names):
    good = gpt.ModelConfig(vocab_size=64, dim=64, num_heads=8, num_kv_heads=2)
    assert gpt.check(good) is good
    for use in (gpt.check, gpt.param_specs, gpt.count_params):
        with pytest.raises(ValueError, match=names):
            use(msgspec.structs.replace(good, **change))


def test_configs_are_frozen_and_refuse_unknown_keys():
    config = gpt.ModelConfig(vocab_size=64)
    with pytest.raises(AttributeError):
        config.dim = 1
    with pytest.raises(msgspec.ValidationError, match="widht"):
        msgspec.convert({"widht": 3}, gpt.ModelConfig)


def test_a_prompt_longer_than_the_context_is_refused(config, rough):
    tokens = torch.zeros(1, config.context + 1, dtype=torch.long)
    gpt.apply(config, rough(config), tokens[:, 1:])
    with pytest.raises(ValueError, match="33 tokens do not fit the context of 32"):
        gpt.apply(config, rough(config), tokens)


def test_a_leaf_depends_on_its_key_and_path_alone(config, same, purely):
    first = purely(gpt.init, config, 5)
    wider = gpt.init(msgspec.structs.replace(config, vocab_size=99, ffn_dim=70), 5)
    assert same(first, gpt.init(config, 5))
    assert same(first["blocks"]["attn"], wider["blocks"]["attn"])
    assert not torch.equal(first["embed"], gpt.init(config, 6)["embed"])
    assert not torch.equal(first["blocks"]["attn"]["k"], first["blocks"]["attn"]["v"])


def test_a_fresh_block_is_the_identity(config):
    params = gpt.init(config, 0)
    seen = {}
    gpt.apply(
        config,
        params,
        torch.zeros(1, 4, dtype=torch.long),
        tap=lambda name, x: seen.setdefault(name, x),
    )
    assert all(not x.any() for name, x in seen.items() if name != "final")


@pytest.mark.parametrize(
    "path", ["blocks/attn/q", "blocks/attn/v", "blocks/ffn/gate", "blocks/ffn/up"]
)
def test_matrices_start_at_one_over_the_root_of_their_input_size(path):
    config = gpt.ModelConfig(
        vocab_size=64, dim=128, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=200
    )
    assert math.isclose(tree.named_leaves(gpt.init(config, 0))[path].std(), 128**-0.5, rel_tol=0.03)


def test_matrices_are_chosen_by_path_never_by_shape():
    config = gpt.ModelConfig(
        vocab_size=64, dim=32, num_layers=2, ffn_dim=48, qk_norm=True, tied=False
    )
    two_dimensional = {
        path for path, w in tree.named_leaves(gpt.init(config, 0)).items() if w.ndim == 2
    }
    stacked_norms = {"attn_norm", "ffn_norm", "attn/q_norm", "attn/k_norm"}
    assert two_dimensional == {"embed", "head"} | {f"blocks/{name}" for name in stacked_norms}
    assert not two_dimensional & gpt.matrix_paths(config)
    assert len(gpt.matrix_paths(config)) == 7


def test_a_cache_fits_the_model(config, rough):
    past = gpt.init_cache(config, tree.cast(rough(config), torch.bfloat16), batch_size=3)
    assert past.k.shape == (2, 3, config.context, 2, 8)
    assert past.k.dtype == torch.bfloat16


def test_a_bf16_cache_decodes_like_a_bf16_forward(config, rough, batch):
    params, tokens = tree.cast(rough(config), torch.bfloat16), batch(config).tokens
    full, _ = gpt.apply(config, params, tokens)
    past, seen = gpt.init_cache(config, params, batch_size=4), []
    for token in tokens.split(1, dim=1):
        logits, past = gpt.apply(config, params, token, past)
        seen.append(logits)
    assert (torch.cat(seen, 1).float() - full.float()).abs().max() < 0.05 * full.float().abs().max()


def test_positions_count_from_zero_in_every_segment(config, rough, batch):
    tables = []

    def record_table(block):
        def recorded(layer, x, inputs, *rest):
            tables.append(inputs.rope_table)
            return block(layer, x, inputs, *rest)

        return recorded

    tokens = batch(config, rows=1, length=5).tokens
    gpt.apply(
        config,
        rough(config),
        tokens,
        segments=torch.tensor([[1, 1, 0, 0, 0, 2]]),
        lift_block=record_table,
    )
    positions = torch.tensor([[0, 1, 0, 1, 2, 0]])
    want = rope_table(
        positions, rope_frequencies(config.head_dim, config.rope_theta), torch.float32
    )
    assert len(tables) == config.num_layers
    assert all(torch.equal(a, b) for table in tables for a, b in zip(table, want, strict=True))


def test_a_cache_longer_than_the_learned_positions_is_refused(config, rough):
    learned = msgspec.structs.replace(config, positions="learned")
    assert gpt.init_cache(learned, rough(learned), 1).k.shape[2] == config.context
    with pytest.raises(
        ValueError, match="a cache of 33 is longer than the 32 learned positions of the model"
    ):
        gpt.init_cache(learned, rough(learned), 1, max_len=33)


def test_alibi_accepts_sequences_longer_than_in_training(config, rough, batch):
    short = msgspec.structs.replace(config, positions="alibi")
    long = msgspec.structs.replace(short, context=2 * config.context)
    tokens, params = batch(config, rows=3, length=2 * config.context - 1).tokens, rough(short)
    first = gpt.apply(short, params, tokens[:, : config.context])[0]
    assert (gpt.apply(long, params, tokens)[0][:, : config.context] - first).abs().max() < 1e-4


@pytest.mark.parametrize("positions", ["rope", "alibi"])
def test_shifting_all_positions_changes_nothing(config, rough, batch, positions):
    # Padding in front, hidden by segments: distances are the same, positions are not.
    shape = msgspec.structs.replace(config, positions=positions, rope_scaling=gpt.RopeScaling())
    params, tokens = rough(shape), batch(config, rows=2, length=9).tokens
    past = gpt.init_cache(shape, params, batch_size=2)
    alone = gpt.apply(shape, params, tokens, past)[0]
    after = torch.cat([tokens.flip(1), tokens], 1)
    packed = gpt.apply(shape, params, after, segments=torch.arange(20)[None].expand(2, 20) // 10)[0]
    assert (packed[:, 10:] - alone).abs().max() < 1e-4


def test_the_soft_cap_reaches_every_head(config, rough, batch):
    capped = msgspec.structs.replace(config, logit_softcap=0.5)
    params, rows = rough(config), batch(config)
    plain, bent = (gpt.apply(shape, params, rows.tokens)[0] for shape in (config, capped))
    assert torch.allclose(bent, 0.5 * torch.tanh(plain / 0.5), atol=1e-6)
    assert bent.abs().max() < 0.5
    for chunked in (True, False):
        loss, _ = next_token(partial(gpt.apply, capped), chunked=chunked)(params, rows)
        logp = bent[:, :-1].log_softmax(-1).gather(-1, rows.tokens[:, 1:, None]).squeeze(-1)
        assert abs(loss + (logp * rows.mask).sum() / rows.mask.sum()) < 1e-5


def from_gpt2(state, num_layers):
    """GPT-2's weights under our names: transposed, with q, k and v split."""

    def layers(name, rows=None, transpose=False):
        parts = [state[f"transformer.h.{i}.{name}"] for i in range(num_layers)]
        parts = [w.T if transpose else w for w in parts]
        return torch.stack([w if rows is None else w.chunk(3)[rows] for w in parts])

    qkv = {
        name + ending: layers(f"attn.c_attn.{part}", i, part == "weight")
        for i, name in enumerate("qkv")
        for ending, part in (("", "weight"), ("_bias", "bias"))
    }

    def dense(name, theirs):
        return {
            name: layers(f"{theirs}.weight", transpose=True),
            f"{name}_bias": layers(f"{theirs}.bias"),
        }

    def norm(name, theirs):
        return {
            name: layers(f"{theirs}.weight"),
            f"{name}_bias": layers(f"{theirs}.bias"),
        }

    return {
        "embed": state["transformer.wte.weight"],
        "positions": state["transformer.wpe.weight"],
        "blocks": {
            **norm("attn_norm", "ln_1"),
            "attn": {**qkv, **dense("o", "attn.c_proj")},
            **norm("ffn_norm", "ln_2"),
            "ffn": {**dense("up", "mlp.c_fc"), **dense("down", "mlp.c_proj")},
        },
        "norm": state["transformer.ln_f.weight"],
        "norm_bias": state["transformer.ln_f.bias"],
    }


def perturb(peer):
    """Adds noise to a model's parameters and returns them by name, without a tied head."""
    for name, w in peer.named_parameters():
        w.data += random.normal(random.fold_in(1, name), w.shape, 0.1)
    return {name: w.detach() for name, w in peer.named_parameters()}


def test_the_gpt_options_equal_gpt_2(batch):
    transformers = pytest.importorskip("transformers")
    peer_config = transformers.GPT2Config(
        vocab_size=64,
        n_positions=24,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_inner=48,
        activation_function="gelu",
    )
    peer = transformers.GPT2LMHeadModel(peer_config).eval()
    config = gpt.ModelConfig(
        vocab_size=64,
        dim=32,
        num_layers=2,
        ffn_dim=48,
        context=24,
        norm="layer",
        ffn="gelu",
        positions="learned",
        biases="all",
        norm_eps=peer_config.layer_norm_epsilon,
    )
    params, tokens = from_gpt2(perturb(peer), 2), batch(config).tokens
    assert tree.named_leaves(params).keys() == tree.named_leaves(gpt.init(config, 0)).keys()
    got, want = gpt.apply(config, params, tokens)[0], peer(tokens).logits
    assert (got - want).abs().max() < 1e-4
    assert want.std() > 0.1


@pytest.mark.parametrize("num_heads", [4, 6])
def test_alibi_equals_mpt(batch, num_heads):
    transformers = pytest.importorskip("transformers")
    peer_config = transformers.MptConfig(
        vocab_size=64,
        max_seq_len=24,
        d_model=8 * num_heads,
        n_layers=2,
        n_heads=num_heads,
        expansion_ratio=2,
    )
    peer = transformers.MptForCausalLM(peer_config).eval()
    config = gpt.ModelConfig(
        vocab_size=64,
        dim=8 * num_heads,
        num_layers=2,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        ffn_dim=16 * num_heads,
        context=24,
        norm="layer",
        ffn="gelu",
        positions="alibi",
    )
    state, tokens = perturb(peer), batch(config).tokens

    def layers(name):
        return torch.stack([state[f"transformer.blocks.{i}.{name}.weight"] for i in range(2)])

    q, k, v = layers("attn.Wqkv").chunk(3, 1)
    params = {
        "embed": state["transformer.wte.weight"],
        "blocks": {
            "attn_norm": layers("norm_1"),
            "attn": {"q": q, "k": k, "v": v, "o": layers("attn.out_proj")},
            "ffn_norm": layers("norm_2"),
            "ffn": {"up": layers("ffn.up_proj"), "down": layers("ffn.down_proj")},
        },
        "norm": state["transformer.norm_f.weight"],
    }
    got, want = gpt.apply(config, params, tokens)[0], peer(tokens).logits
    assert (got - want).abs().max() < 1e-4
    assert want.std() > 0.1
