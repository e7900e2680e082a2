"""llama.cpp's pace, where a model file is there: see `tests/bench/test_decode.py` for the rest."""

import pytest

from slm_fn.bench import decode_peers


def test_every_peer_has_a_package():
    assert set(decode_peers.KINDS) == {"transformers", "llama.cpp"}


def test_llama_cpp_wants_a_file_that_is_there_and_its_package(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--gguf FILE"):
        decode_peers.check(["llama.cpp"], tmp_path / "none.gguf")
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(decode_peers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install xllamacpp"):
        decode_peers.check(["llama.cpp"], tmp_path / "some.gguf")
    monkeypatch.setattr(decode_peers, "find_spec", lambda name: name)
    decode_peers.check(["llama.cpp"], tmp_path / "some.gguf")
