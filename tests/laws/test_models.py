"""Laws of every decoder shape. A new shape joins MODELS in one line and is held to all of them."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from slm_fn.core import random, tree
from slm_fn.core.grads import remat, value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.loss.lm import next_token
from slm_fn.nn import cache, gpt

SMALL = partial(gpt.ModelConfig, vocab_size=64, dim=32, num_layers=2, num_heads=4, ffn_dim=48, context=24)
MODELS = {
    "gqa": SMALL(num_kv_heads=2),
    "mqa": SMALL(num_kv_heads=1),
    "mha": SMALL(num_kv_heads=4),
    "gqa-qk_norm": SMALL(num_kv_heads=2, qk_norm=True),
    "mqa-untied": SMALL(num_kv_heads=1, tied=False),
    "mha-untied-qk_norm": SMALL(num_kv_heads=4, tied=False, qk_norm=True),
    "one-head-one-layer": SMALL(num_heads=1, num_kv_heads=1, num_layers=1, rope_theta=500.0),
}
LENGTH = 12


@pytest.fixture(params=MODELS)
def decoder(request, rough, batch):
    """(config, apply, parameters, tokens)"""
    config = MODELS[request.param]
    return config, partial(gpt.apply, config), rough(config), batch(config, rows=4, length=LENGTH - 1).tokens


def shared_head(weight, hidden):
    return F.linear(hidden, weight)


@pytest.mark.parametrize("parts", [(LENGTH,), (7, 5), (3, 4, 1, 1, 3), (1,) * LENGTH], ids=str)
def test_cached_decoding_is_the_full_forward(decoder, parts, purely):
    config, apply, params, tokens = decoder
    full, _ = apply(params, tokens)
    past, seen = gpt.init_cache(config, params, batch=4, size=LENGTH + 3), []
    for part in tokens.split(parts, dim=1):
        logits, past = purely(apply, params, part, past)
        seen.append(logits)
    assert past.length.tolist() == [LENGTH] * 4
    assert (torch.cat(seen, 1) - full).abs().max() <= 1e-4


def test_rows_of_different_lengths_share_a_cache(decoder):
    config, apply, params, tokens = decoder
    full, _ = apply(params, tokens)
    # What lies beyond a row's length is what the others wrote there, or older: it must not be seen.
    _, past = apply(params, tokens.flip(1), gpt.init_cache(config, params, batch=4))
    _, past = apply(params, tokens[:, :8], cache.reset(past, torch.arange(4)))
    lengths = torch.tensor([3, 8, 1, 5])
    past, rows = past._replace(length=lengths), torch.arange(4)
    for t in range(LENGTH - 8):
        logits, past = apply(params, tokens[rows, lengths + t][:, None], past)
        assert (logits[:, 0] - full[rows, lengths + t]).abs().max() <= 1e-4
    assert past.length.tolist() == (lengths + LENGTH - 8).tolist()


def test_forked_and_freed_rows_go_on_as_their_own(decoder):
    config, apply, params, tokens = decoder
    full, _ = apply(params, tokens)
    _, past = apply(params, tokens[:, :6], gpt.init_cache(config, params, batch=4))
    order = torch.tensor([2, 2, 0])
    logits, _ = apply(params, tokens[order, 6:9], cache.take(past, order))
    assert (logits - full[order, 6:9]).abs().max() <= 1e-4
    logits, _ = apply(params, tokens[:, :3], cache.reset(past, torch.arange(4)))
    assert (logits - full[:, :3]).abs().max() <= 1e-4


def test_the_future_has_gradient_zero(decoder):
    config, apply, params, _ = decoder
    tokens = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(0))[None, :LENGTH]
    direction = random.normal(1, (config.vocab_size,))

    def read(embedding):
        # Tokens differ, so an embedding row is one place; the head is held fixed, tied or not.
        head = lambda weight, hidden: F.linear(hidden, weight.detach()) @ direction  # noqa: E731
        return apply({**params, "embed": embedding}, tokens, head=head)[0][0]

    jacobian_TVD = torch.autograd.functional.jacobian(read, params["embed"])
    seen_TS = jacobian_TVD[:, tokens[0]].abs().sum(-1)
    assert torch.equal(seen_TS > 0, torch.ones(LENGTH, LENGTH).tril().bool())


def test_plain_and_fused_attention_agree(decoder, gap):
    _, apply, params, tokens = decoder
    rows = LMBatch(tokens, torch.ones(4, LENGTH - 1))
    of = {
        backend: value_and_grad(next_token(partial(apply, backend=backend)))(params, rows)
        for backend in ("plain", "fused")
    }
    assert gap(of["plain"], of["fused"]) <= 1e-5
    config = decoder[0]
    past = gpt.init_cache(config, params, batch=4)._replace(length=torch.tensor([0, 2, 5, 1]))
    plain, fused = (apply(params, tokens[:, :4], past, backend=backend)[0] for backend in ("plain", "fused"))
    assert (plain - fused).abs().max() <= 1e-4


def test_remat_changes_memory_and_no_number(decoder, same, purely):
    _, apply, params, tokens = decoder
    rows = LMBatch(tokens, torch.ones(4, LENGTH - 1))
    passes = []

    def counted(block):
        def run(*args):
            passes.append(1)
            return block(*args)

        return remat(run)

    kept = value_and_grad(next_token(apply))(params, rows)
    again = purely(value_and_grad(next_token(partial(apply, lift_block=counted))), params, rows)
    assert same(kept, again)
    assert len(passes) == 2 * decoder[0].num_layers  # each block ran forward, and again on the way back


def test_apply_commutes_with_vmap_over_parameters(decoder, rough):
    config, apply, _, tokens = decoder
    members = [rough(config, key) for key in range(3)]
    together = torch.func.vmap(lambda params: apply(params, tokens)[0])(tree.stack(*members))
    for logits, member in zip(together, members, strict=True):
        assert (logits - apply(member, tokens)[0]).abs().max() <= 1e-5


def test_apply_compiled_is_apply(decoder, no_shape_checks):
    _, apply, params, tokens = decoder
    compiled = torch.compile(lambda params, tokens: apply(params, tokens)[0], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(params, tokens), apply(params, tokens)[0])


def alone(apply, params, tokens, segments, **kwargs):
    """The logits of every text run by itself, put back where it stood."""
    rows = []
    for row, marks in zip(tokens, segments, strict=True):
        lengths = torch.unique_consecutive(marks, return_counts=True)[1].tolist()
        rows.append(torch.cat([apply(params, part[None], **kwargs)[0][0] for part in row.split(lengths)]))
    return torch.stack(rows)


SEGMENTS = torch.tensor(
    [[0] * LENGTH, [0] * 5 + [1] * 7, list(range(LENGTH)), [3, 3, 3, 1, 2, 2, 2, 2, 2, 2, 1, 1]]
)  # one, two, all apart, any numbers: one that comes again is another text


@pytest.mark.parametrize("backend", ["plain", "fused"])
def test_a_text_in_a_packed_row_is_the_text_alone(decoder, backend, purely):
    _, apply, params, tokens = decoder
    packed = purely(apply, params, tokens, segments=SEGMENTS, backend=backend)[0]
    assert (packed - alone(apply, params, tokens, SEGMENTS, backend=backend)).abs().max() <= 1e-5
    plain = apply(params, tokens, backend=backend)[0]
    assert torch.equal(packed[0], plain[0])
    assert (packed[1, 5:] - plain[1, 5:]).abs().max() > 1e-2  # and without segments it is not


def test_a_text_s_gradient_stays_inside_it(decoder):
    config, apply, params, _ = decoder
    tokens = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(0))[None, :LENGTH]
    direction = random.normal(1, (config.vocab_size,))

    def read(embedding):
        head = lambda weight, hidden: F.linear(hidden, weight.detach()) @ direction  # noqa: E731
        return apply({**params, "embed": embedding}, tokens, head=head, segments=SEGMENTS[3:])[0][0]

    jacobian_TVD = torch.autograd.functional.jacobian(read, params["embed"])
    seen_TS = jacobian_TVD[:, tokens[0]].abs().sum(-1) > 0
    runs = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 3, 3])
    assert torch.equal(seen_TS, (runs[:, None] == runs).tril())


def test_segments_pass_through_vmap_grad_and_compile(decoder, gap, no_shape_checks):
    _, apply, params, tokens = decoder
    here = partial(apply, params)
    each = torch.func.vmap(lambda row, marks: here(row[None], segments=marks[None])[0][0])(tokens, SEGMENTS)
    assert (each - here(tokens, segments=SEGMENTS)[0]).abs().max() <= 1e-5
    rows = LMBatch(tokens, torch.ones(4, LENGTH - 1))
    loss = next_token(partial(apply, segments=SEGMENTS[:, :-1]))
    engines = [value_and_grad(loss, engine=engine)(params, rows) for engine in ("autograd", "func")]
    assert gap(*engines) <= 1e-5
    compiled = torch.compile(lambda tokens, marks: here(tokens, segments=marks)[0], backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(tokens, SEGMENTS), here(tokens, segments=SEGMENTS)[0])


def test_taps_see_every_activation_and_may_replace_it(decoder):
    config, apply, params, tokens = decoder
    seen = []
    apply(params, tokens, tap=lambda name, x: seen.append(name) or x)
    assert seen == [f"{i}/{part}" for i in range(config.num_layers) for part in ("attn", "ffn")] + ["final"]
    silent = apply(params, tokens, tap=lambda name, x: x if name == "final" else torch.zeros_like(x))[0]
    fresh = tree.update_in(params, lambda path, w: torch.zeros_like(w) if path.endswith(("/o", "/down")) else w)
    assert torch.equal(silent, apply(fresh, tokens)[0])


def test_spec_count_and_init_tell_of_the_same_tree(decoder):
    config, _, params, _ = decoder
    fresh = gpt.init(config, key=5)
    assert tree.count(fresh) == gpt.count(config)
    assert {path: w.shape for path, w in tree.paths(fresh).items()} == {
        p: w.shape for p, w in tree.paths(params).items()
    }
    in_blocks = {path for path, w in tree.paths(fresh).items() if path.startswith("blocks/") and w.ndim == 3}
    assert gpt.matrices(config) == in_blocks


SHAPES = [(32, 64), (64, 256), (256, 256), (192, 4096), (384, 1024), (768, 2048), (1024, 4096)]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("dim", "vocab_size"), SHAPES)
def test_a_fresh_model_knows_nothing(dim, vocab_size, tied):
    config = gpt.ModelConfig(
        vocab_size=vocab_size, dim=dim, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=16, context=64, tied=tied
    )
    tokens = (random.uniform(1, (4, 65)) * vocab_size).long()
    loss, _ = next_token(partial(gpt.apply, config))(gpt.init(config, key=3), LMBatch(tokens, torch.ones(4, 64)))
    assert abs(loss / math.log(vocab_size) - 1) < 0.02


def test_the_usual_shapes_start_at_a_quarter():
    for dim, vocab_size in [(192, 4096), (384, 8192), (768, 32000)]:
        config = gpt.ModelConfig(vocab_size=vocab_size, dim=dim, num_heads=dim // 64, num_kv_heads=dim // 64)
        assert gpt.spec(config)["embed"].std == 0.25 * dim**-0.5
