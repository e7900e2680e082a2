"""`slm bench decode`: real runs of a tiny model; shares of the bandwidth; refused settings."""

import msgspec
import pytest

from slm_fn.bench.decode import benchmark
from slm_fn.bench.decode import report as reports
from slm_fn.bench.decode.benchmark import DecodeSettings, DecodeVariant
from slm_fn.bench.decode.timing import DecodeRun, DecodeTiming, DecodeWorkload
from slm_fn.lift import quant
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
WORKLOAD = DecodeWorkload(2048, new_tokens=6, threads=1)


def test_a_token_reads_every_weight_once_and_the_embedding_only_as_a_head():
    tied = gpt.init(TINY, 0)
    all_bytes = 4 * gpt.count_params(TINY)
    assert benchmark._count_bytes_per_token(TINY, tied) == all_bytes
    untied = msgspec.structs.replace(TINY, tied=False)
    assert benchmark._count_bytes_per_token(untied, gpt.init(untied, 0)) == all_bytes
    is_matrix = gpt.matrix_paths(TINY).__contains__
    quantized = quant.quantize(tied, quant.PRESETS["int8"], is_matrix)
    assert benchmark._count_bytes_per_token(TINY, quantized) < 0.5 * all_bytes


def test_the_engine_generates_what_was_requested(monkeypatch):
    generations = []
    # The read rate is the machine's, not the model's, and takes seconds to measure.
    monkeypatch.setattr(benchmark, "read_rate", lambda device: 1e9)

    def fake_time_generation(generate, workload):
        generation = generate(8, 64, 3)
        generations.append(generation)
        assert 0 < max(generation.first_token_seconds) < generation.seconds
        return DecodeTiming(1, 2, 3, 4, 5)

    monkeypatch.setattr(benchmark, "time_generation", fake_time_generation)
    decode_run = benchmark.run_own(DecodeVariant(TINY, None, "int8", "auto"), WORKLOAD)
    assert decode_run.timing == DecodeTiming(1, 2, 3, 4, 5)
    assert decode_run.engine == "native"
    assert len(generations[0].first_token_seconds) == 8


def test_report_and_its_rows():
    own = [
        DecodeRun(DecodeTiming(100 * i, 80 * i, 400, 1000, 50), 2e10, 10**8, "native")
        for i in (1, 2, 3)
    ]
    peer = [DecodeRun(DecodeTiming(50, 40, 100, 500, 40))] * 3
    runs = dict.fromkeys(reports.PRECISIONS, own) | {"transformers": peer}
    report = reports.make_report(TINY, WORKLOAD, runs, 3)
    assert report.bf16_tok_per_s == 200
    assert report.bf16_bandwidth_share == pytest.approx(1)
    assert report.batch8_speedup == 2.5
    assert report.peers[0].bf16_ratio == 4
    assert any("100%" in cell for row in reports.rows(report) for cell in row)
    assert reports.peer_rows(report)[0][-1] == "4.00 x"


def test_settings_that_cannot_run_are_refused(tmp_path):
    with pytest.raises(ValueError, match="--gguf"):
        benchmark.run(DecodeSettings(peers=("llama.cpp",)))
    with pytest.raises(FileNotFoundError, match="no such model"):
        benchmark.run(DecodeSettings(tmp_path / "none"))
