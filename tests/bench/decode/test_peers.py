"""The other implementations of generation: which can run, and transformers on a tiny model."""

import pytest
import torch

from slm_fn.bench.decode import peers
from slm_fn.bench.decode.timing import DecodeWorkload
from slm_fn.nn import gpt

TINY = gpt.ModelConfig(
    vocab_size=2048,
    dim=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    ffn_dim=64,
    context=512,
    tied=True,
)


def test_every_peer_has_a_package():
    assert set(peers.PACKAGES) == {"transformers", "llama.cpp"}


def test_an_unknown_peer_is_refused():
    with pytest.raises(ValueError, match="not one of"):
        peers.check(["vllm"], None)


def test_llama_cpp_needs_a_model_file_and_its_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--gguf FILE"):
        peers.check(["llama.cpp"], tmp_path / "none.gguf")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install xllamacpp"):
        peers.check(["llama.cpp"], tmp_path / "some.gguf")
    monkeypatch.setattr(peers, "find_spec", lambda name: name)
    peers.check(["llama.cpp"], tmp_path / "some.gguf")


def test_transformers_generates_what_was_requested():
    decode_run = peers.run("transformers", TINY, None, DecodeWorkload(2048, new_tokens=6))
    assert min(decode_run.timing) > 0
    torch.set_num_threads(1)
