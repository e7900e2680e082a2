"""`slm bench`: the JSON keys, measured on small inputs."""

import json

import msgspec
from click.testing import CliRunner

from slm_fn.bench import tokenizer
from slm_fn.cli.bench import group, serve, train
from slm_fn.cli.bench import tokenizer as tokenizer_command

assert serve.command.name == "serve"
assert tokenizer_command.command.name == "tokenizer"
assert train.command.name == "train"
SMALL = [
    f"--set=model.{key}"
    for key in ("dim=32", "num_layers=1", "num_heads=2", "num_kv_heads=2", "ffn_dim=64")
]


def call(*args):
    return CliRunner().invoke(group.command, [str(arg) for arg in args])


def test_tokenizer_prints_its_figures(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat, and that was that\n" * 200)
    done = call("tokenizer", tmp_path, "--vocab-size", 280, "--repeat", 1, "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    keys = (
        "train_mb_per_s",
        "train_ratio_hf",
        "encode_mb_per_s",
        "encode_ratio_hf",
        "pack_mb_per_s",
        "peak_memory_mib",
    )
    assert all(isinstance(figures[key], float) for key in keys)
    assert all(figures[key] > 0 for key in keys)
    assert figures["identical_ids"]
    assert figures["engine"] == "gigatoken"
    assert figures["text_mb"] == 0.0084
    table = tokenizer.rows(msgspec.convert(figures, tokenizer.TokenizerReport))
    assert ["train_ratio_hf", round(figures["train_ratio_hf"], 2)] in table
    assert "round 1 of 1" in done.stderr


def test_train_prints_its_figures():
    small = (
        "--batch-size",
        2,
        "--context",
        16,
        "--precision",
        "float32",
        "--repeat",
        1,
        "--steps",
        1,
    )
    done = call("train", *SMALL, *small, "--device", "cpu", "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    rates = (
        "tok_per_s",
        "flop_per_s",
        "matmul_flop_per_s",
        "matmul_share",
        "peak_memory_mib",
        "compile_s",
    )
    assert all(isinstance(figures[key], float) for key in rates)
    assert (figures["precision"], figures["device"], figures["batch_size"]) == ("float32", "cpu", 2)
    assert figures["threads"] >= 1
    assert figures["params"] == 8192 * 32 + 4 * 32**2 + 3 * 32 * 64 + 3 * 32
    assert "peer" not in figures
    assert "round 1 of 1" in done.stderr


def test_an_inconsistent_model_is_refused_before_anything_runs():
    done = call("train", "--set", "model.num_heads=5")
    assert isinstance(done.exception, ValueError)
    assert "model.num_heads" in str(done.exception)


def test_serve_needs_a_peer_and_its_file_together(tmp_path):
    for wrong in (("--peer", "llama.cpp"), ("--gguf", tmp_path / "x.gguf")):
        done = call("serve", tmp_path, *wrong)
        assert done.exit_code == 2
        assert "--peer llama.cpp and --gguf FILE go together" in done.output
    assert "no such file" in str(
        call("serve", tmp_path, "--peer", "llama.cpp", "--gguf", tmp_path / "x").exception
    )
