"""The other trainers: as large as ours, causal, and able to learn."""

import pytest
import torch

from slm_fn.bench.train import benchmark, peers
from slm_fn.bench.train.peers import LlamaShape, PlainDecoder, TrainPeer
from slm_fn.bench.train.timing import StepWorkload
from slm_fn.nn import gpt


def test_peers_have_our_number_of_parameters() -> None:
    config = benchmark.resolve_config(
        None,
        [
            "model.dim=32",
            "model.num_layers=1",
            "model.num_heads=2",
            "model.num_kv_heads=2",
            "model.ffn_dim=64",
            "model.vocab_size=64",
        ],
        context=16,
    )
    shape = LlamaShape(32, 1, 2, 2, 64, config.model.tied)
    workload = StepWorkload(64, 2, 16, 2, "cpu")
    plain = PlainDecoder(shape, workload)
    assert sum(p.numel() for p in plain.parameters()) == gpt.count_params(config.model)
    _, llama = peers._make_llama(shape, workload)
    assert sum(p.numel() for p in llama.parameters()) == gpt.count_params(config.model)


def test_the_plain_peer_is_causal() -> None:
    model = PlainDecoder(LlamaShape(32, 2, 4, 2, 64, False), StepWorkload(64, 1, 8, 1, "cpu"))
    tokens = torch.arange(8)[None]
    changed = torch.cat([tokens[:, :5], tokens[:, 5:] + 9], 1)
    before, after = model(tokens), model(changed)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


def test_transformers_is_measured_in_each_usual_setting() -> None:
    settings = [(peer.precision, peer.compiled) for peer in peers.select("transformers")]
    assert settings == [("float32", False), ("bfloat16", False), ("bfloat16", True)]
    assert peers.select("transformers", default_precision="float32") == [
        TrainPeer("transformers", "float32", False)
    ]
    assert peers.select("transformers", "bfloat16", True) == [
        TrainPeer("transformers", "bfloat16", True)
    ]
    with pytest.raises(ValueError, match="not one of transformers, plain"):
        peers.select("llama")


def test_a_peer_s_loss_falls() -> None:
    workload = StepWorkload(64, 8, 16, 30, "cpu")
    shape = LlamaShape(32, 1, 2, 2, 64, True)
    for kind in peers.KINDS:
        timing = peers.run(TrainPeer(kind, "float32", False), shape, workload)
        assert timing.last_loss < timing.first_loss - 0.05
