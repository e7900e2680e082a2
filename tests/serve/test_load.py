"""The server under load, a process of its own: right words to everyone, whatever the others do; a clean end."""

import sys

import pytest

from slm_fn.bench import serve
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Generation
from slm_fn.text import bpe
from slm_fn.train import checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rough):
    place = tmp_path_factory.mktemp("load") / "small"
    place.mkdir()
    tokenizer = bpe.train(["to be or not to be, that is the question"] * 3, vocab_size=280)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, context=160
    )
    for name, data in models.describe(config, tokenizer, Generation()).items():
        (place / name).write_bytes(data)
    checkpoint.save_tree(place / checkpoint.WEIGHTS, rough(config))
    return place


def check(report, notes):
    told = (report, notes)
    assert report.errors == 0, told
    assert report.mismatches == 0, told
    assert report.rows_leaked == 0, told
    assert report.cut_at_stop == 0, told
    assert report.ended_at_stop > 0, told
    assert report.exit_status == 0, told
    assert report.completed > 0, told
    assert report.left > 0, told
    assert report.refused > 0, told


def test_a_server_bears_clients_of_every_kind(folder):
    notes = []
    report = serve.run(folder, streams=6, seconds=2, note=notes.append, num_tasks=8)
    check(report, notes)
    assert 0 < report.ttft_p50_ms <= report.ttft_p95_ms
    assert 0 < report.inter_token_p50_ms <= report.inter_token_p95_ms
    assert report.one_tok_per_s > 0
    assert report.tok_per_s > 0


@pytest.mark.slow
def test_five_minutes_of_64_streams(folder):
    notes = []
    report = serve.run(folder, streams=64, seconds=300, note=notes.append)
    print(report, *notes, sep="\n", file=sys.stderr)
    check(report, notes)
    assert abs(report.rss_growth_share) <= 0.03
