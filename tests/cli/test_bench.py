"""`slm bench`: the keys that scripts read, measured on something small."""

import json

import msgspec
from click.testing import CliRunner

from slm_fn.bench import tokenizer
from slm_fn.cli import bench, bench_serve, bench_tokenizer, bench_train

assert bench_serve.command.name == "serve"
assert bench_tokenizer.command.name == "tokenizer"
assert bench_train.command.name == "train"
SMALL = [f"--set=model.{key}" for key in ("dim=32", "num_layers=1", "num_heads=2", "num_kv_heads=2", "ffn_dim=64")]


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
    assert all(told[key] > 0 for key in keys)
    assert told["identical_ids"]
    assert told["engine"] == "gigatoken"
    assert told["text_mb"] == 0.0084
    shown = tokenizer.rows(msgspec.convert(told, tokenizer.Report))
    assert ["train_ratio_hf", round(told["train_ratio_hf"], 2)] in shown
    assert "round 1 of 1" in done.stderr


def test_train_prints_its_figures():
    small = ("--batch-size", 2, "--context", 16, "--precision", "float32", "--repeat", 1, "--steps", 1)
    done = call("train", *SMALL, *small, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    rates = ("tok_per_s", "flop_per_s", "matmul_flop_per_s", "matmul_share", "peak_memory_mib", "compile_s")
    assert all(isinstance(told[key], float) for key in rates)
    assert (told["precision"], told["device"], told["batch_size"]) == ("float32", "cpu", 2)
    assert told["threads"] >= 1
    assert told["params"] == 8192 * 32 + 4 * 32**2 + 3 * 32 * 64 + 3 * 32
    assert "peer" not in told
    assert "round 1 of 1" in done.stderr


def test_a_model_that_makes_no_sense_is_refused_before_anything_runs():
    done = call("train", "--set", "model.num_heads=5")
    assert isinstance(done.exception, ValueError)
    assert "model.num_heads" in str(done.exception)


def test_serve_wants_a_peer_and_its_file_together(tmp_path):
    for wrong in (("--peer", "llama.cpp"), ("--gguf", tmp_path / "x.gguf")):
        done = call("serve", tmp_path, *wrong)
        assert done.exit_code == 2
        assert "--peer llama.cpp and --gguf FILE go together" in done.output
    assert "no such file" in str(call("serve", tmp_path, "--peer", "llama.cpp", "--gguf", tmp_path / "x").exception)
