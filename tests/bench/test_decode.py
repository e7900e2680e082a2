"""`slm bench decode`: real runs of a tiny model, ours and transformers'; shares, refusals."""

import msgspec
import pytest
import torch

from slm_fn.bench import decode, decode_peers
from slm_fn.bench.decode_peers import Pace, Work
from slm_fn.lift import quant
from slm_fn.nn import gpt

TINY = gpt.ModelConfig(
    vocab_size=2048, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, context=512, tied=True
)
WORK = Work(2048, new_tokens=6, threads=1)


def test_a_token_reads_every_weight_once_and_the_embedding_only_as_a_head():
    tied = gpt.init(TINY, 0)
    assert decode._bytes_per_token(TINY, tied) == 4 * gpt.count(TINY)
    apart = msgspec.structs.replace(TINY, tied=False)
    assert decode._bytes_per_token(apart, gpt.init(apart, 0)) == 4 * gpt.count(TINY)
    small = quant.quantize(tied, quant.NAMED["int8"], gpt.matrices(TINY).__contains__)
    assert decode._bytes_per_token(TINY, small) < 0.5 * 4 * gpt.count(TINY)


def test_ours_generates_what_was_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(decode, "read_rate", lambda place: 1e9)  # of the machine, not of the model: it takes seconds

    def watch(generate, work):
        seconds, firsts = generate(8, 64, 3)
        asked.append((seconds, len(firsts)))
        assert 0 < max(firsts) < seconds
        return Pace(1, 2, 3, 4, 5)

    monkeypatch.setattr(decode_peers, "pace", watch)
    found = decode.contestant(TINY, None, "int8", "auto", WORK)
    assert found.pace == Pace(1, 2, 3, 4, 5)
    assert found.engine == "native"
    assert asked[0][1] == 8


def test_transformers_generates_what_was_asked():
    found = decode_peers.run("transformers", TINY, None, WORK)
    assert min(found) > 0
    torch.set_num_threads(1)


def test_paces():
    def generate(rows, length, num_new):
        read = length * rows / 1000
        return read + num_new - 1, [read] * rows

    found = decode_peers.pace(generate, Work(2048, prompt_tokens=100, new_tokens=11, long_prompt=400))
    assert found.tok_per_s == pytest.approx(1)
    assert found.request_tok_per_s == pytest.approx(11 / 10.1)
    assert found.batch8_tok_per_s == pytest.approx(8 * 11 / 10.8)
    assert found.prefill_tok_per_s == pytest.approx(1000)
    assert found.first_token_p50_ms == pytest.approx(800)


def test_report_and_its_lines():
    own = [decode.Found(Pace(100 * i, 80 * i, 400, 1000, 50), 2e10, 10**8, "native") for i in (1, 2, 3)]
    found = dict.fromkeys(decode.PRECISIONS, own) | {"transformers": [Pace(50, 40, 100, 500, 40)] * 3}
    report = decode._report(TINY, WORK, found, 3)
    assert report.bf16_tok_per_s == 200
    assert report.bf16_bandwidth_share == pytest.approx(1)
    assert report.batch8_speedup == 2.5
    assert report.peers[0].bf16_ratio == 4
    assert any("100%" in cell for row in decode.rows(report) for cell in row)
    assert decode.peer_rows(report)[0][-1] == "4.00 x"


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="--gguf"):
        decode.run(peers=["llama.cpp"])
    with pytest.raises(ValueError, match="not one of"):
        decode_peers.check(["vllm"], None)
    with pytest.raises(FileNotFoundError, match="no such model"):
        decode.run(tmp_path / "none")


def test_prompts_differ_by_row_and_fit_the_vocabulary():
    rows = [WORK.prompt(row, 64) for row in range(8)]
    assert len({tuple(row) for row in rows}) == 8
    assert all(0 <= id < 2048 for row in rows for id in row)
