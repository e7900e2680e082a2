"""The server under load, in its own process: correct replies for every client, a clean exit."""

import sys

import pytest

from slm_fn.bench.serve import benchmark
from slm_fn.bench.serve.benchmark import ServeSettings
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.model_folder import GenerationConfig
from slm_fn.text.training import bpe
from slm_fn.train import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rough):
    folder = tmp_path_factory.mktemp("load") / "small"
    folder.mkdir()
    tokenizer = bpe.train(["to be or not to be, that is the question"] * 3, vocab_size=280)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=64,
        context=160,
    )
    for name, data in models.metadata_files(config, tokenizer, GenerationConfig()).items():
        (folder / name).write_bytes(data)
    checkpoint.save_tree(folder / checkpoint.WEIGHTS, rough(config))
    return folder


def check(report, notes):
    details = (report, notes)
    assert report.errors == 0, details
    assert report.mismatches == 0, details
    assert report.slots_leaked == 0, details
    assert report.cut_at_stop == 0, details
    assert report.completed_at_stop > 0, details
    assert report.exit_status == 0, details
    assert report.completed > 0, details
    assert report.disconnected > 0, details
    assert report.invalid_requests > 0, details


def test_a_server_serves_clients_of_every_kind(folder):
    notes = []
    report = benchmark.run(ServeSettings(folder, 6, 2.0, num_requests=8), notes.append)
    check(report, notes)
    assert 0 < report.ttft_p50_ms <= report.ttft_p95_ms
    assert 0 < report.inter_token_p50_ms <= report.inter_token_p95_ms
    assert report.single_tok_per_s > 0
    assert report.tok_per_s > 0


@pytest.mark.slow
def test_five_minutes_of_64_streams(folder):
    notes = []
    report = benchmark.run(ServeSettings(folder, num_streams=64, seconds=300.0), notes.append)
    print(report, *notes, sep="\n", file=sys.stderr)
    check(report, notes)
    assert abs(report.rss_growth_share) <= 0.03
