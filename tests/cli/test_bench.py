"""`slm bench tokenizer`: the keys that scripts read, measured on a small text."""

import json

from click.testing import CliRunner

from slm_fn.cli import bench, bench_tokenizer

assert bench_tokenizer.command.name == "tokenizer"


def call(*args):
    return CliRunner().invoke(bench.command, [str(arg) for arg in args])


def test_tokenizer_prints_its_figures(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat, and that was that\n" * 200)
    done = call("tokenizer", tmp_path, "--vocab-size", 280, "--repeat", 1, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    keys = (
        "train_mb_per_s",
        "train_ratio_hf",
        "encode_mb_per_s",
        "encode_ratio_hf",
        "pack_mb_per_s",
        "peak_memory_mib",
    )
    assert all(isinstance(told[key], float) for key in keys)
    assert told["identical_ids"]
    assert "round 1 of 1" in done.stderr


def test_a_table_for_people(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat, and that was that\n" * 200)
    done = call("tokenizer", tmp_path, "--vocab-size", 280, "--repeat", 1)
    assert "train_ratio_hf" in done.stdout
