"""cli: what a user types. Help is quick and light, bad input is one line and exit 2, figures are JSON."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

import pytest

from slm_fn.cli.main import main

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def slm(*args, stdin=None, **env):
    return subprocess.run(
        [sys.executable, "-m", "slm_fn.cli.main", *map(str, args)],
        capture_output=True,
        input=stdin,
        env={**ENV, **env},
        timeout=240,
    )


@pytest.fixture
def call(monkeypatch, capsys):
    """A command without a process of its own, whose imports take seconds: exit status, output and errors."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["slm", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def trained(road, tmp_path_factory):
    """pretrain, sft and dpo as commands; the folders they wrote."""
    out = tmp_path_factory.mktemp("cli")
    common = ["--device", "cpu", "--no-progress", "--json"]
    steps = [
        ("pretrain", road.config_file, "--data", road.pack),
        ("sft", road.config_file, "--init", out / "pretrain", "--data", road.chat, "--val-fraction", "0.3"),
        ("dpo", road.config_file, "--init", out / "sft", "--data", road.pairs, "--val", road.pairs),
    ]
    for args in steps:
        done = slm(*args, "--out", out / args[0], *common)
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout)["step"] > 0
    return out


def test_help_is_quick_and_light():
    code = (
        "import sys; sys.argv=['slm','--help']\nfrom slm_fn.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'help imports torch'"
    )
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert b"pretrain" in done.stdout
    assert statistics.median(seconds) <= 0.3


@pytest.mark.parametrize(
    "command",
    ["demo", "device", "config show", "data prepare", "data pack", "data inspect", "tokenizer train",
     "tokenizer inspect", "tokenizer encode", "tokenizer decode", "tokenizer export", "pretrain", "sft", "dpo",
     "eval ppl", "sample", "chat", "serve", "quantize", "keys add", "bench decode", "bench serve", "runs"],
)  # fmt: skip
def test_every_command_shows_an_example(command, call):
    code, out, _ = call(*command.split(), "--help")
    assert code == 0
    assert "Example:" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pretrain", "tinny", "--data", "x", "--out", "y"], ["tinny", "presets: "]),
        (["pretrain", "tiny", "--data", "nowhere", "--out", "y"], ["nowhere"]),
        (["pretrain", "tiny", "--set", "model.num_layer=2", "--data", "x", "--out", "y"], ["num_layer", "num_layers"]),
        (["tokenizer", "train", "nowhere.txt", "--out", "t.json"], ["nowhere.txt"]),
        (["sample", "nowhere", "--prompt", "x"], ["nowhere"]),
        (["eval", "ppl", "nowhere", "--data", "x"], ["nowhere"]),
        (["runs", "nowhere"], ["nowhere"]),
        (["device", "--jsn"], ["--jsn"]),
        (["pretend"], ["pretend"]),
    ],
)
def test_bad_input_is_a_line_and_exit_2(args, words, call):
    code, _, text = call(*args)
    assert code == 2, text
    assert "Traceback" not in text
    assert all(word in text for word in words), text
    assert len([line for line in text.splitlines() if line.startswith("slm:")]) <= 1


def test_an_empty_corpus_is_said(tmp_path, road, call):
    (tmp_path / "empty.txt").write_text("  \n")
    for args in (
        ["tokenizer", "train", tmp_path, "--out", tmp_path / "t.json"],
        ["data", "pack", "--tokenizer", road.tokenizer, "--in", tmp_path, "--out", tmp_path / "p"],
    ):
        code, _, told = call(*args)
        assert code == 2
        told = told.splitlines()  # the file that was passed over, and that nothing is left
        assert len(told) == 2, told
        assert "empty.txt" in told[0]
        assert told[1].startswith("slm: the corpus is empty")


def test_a_tokenizer_that_does_not_belong_is_said(tmp_path, road, call):
    pack = shutil.copytree(road.pack, tmp_path / "pack")
    code, _, told = call("tokenizer", "train", road.text, "--out", pack / "tokenizer.json", "--vocab-size", "300")
    assert code == 0, told
    code, _, told = call("pretrain", road.config_file, "--data", pack, "--out", tmp_path / "run")
    assert code == 2
    assert "tokenizer" in told
    assert len(told.splitlines()) == 1, told


def test_a_truncated_checkpoint_is_said(tmp_path, trained, call):
    place = shutil.copytree(next((trained / "sft" / "checkpoints").glob("step-*")), tmp_path / "broken")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    code, _, told = call("sample", place, "--prompt", "x")
    assert code == 2
    assert len(told.splitlines()) == 1, told


def test_a_prompt_longer_than_the_context_is_said(trained, call):
    code, _, told = call("sample", trained / "pretrain", "--prompt", "to be or not " * 200)
    assert code == 2
    assert "maximum context length is 64" in told


def test_a_debugger_sees_the_traceback():
    done = slm("pretrain", "tinny", "--data", "x", "--out", "y", SLM_DEBUG="1")
    assert b"Traceback" in done.stderr


def test_encode_and_decode_are_inverse(road):
    text = "to be, <|end|> or né 🙂 not\n".encode()
    ids = slm("tokenizer", "encode", road.tokenizer, stdin=text)
    back = slm("tokenizer", "decode", road.tokenizer, stdin=ids.stdout)
    assert back.stdout == text
    wrong = slm("tokenizer", "decode", road.tokenizer, stdin=b"999999")
    assert wrong.returncode == 2


def test_figures_are_one_json_object(road, trained, call):
    for args in (
        ["device"],
        ["config", "show", "tiny"],
        ["tokenizer", "inspect", road.tokenizer, "--text", "to be"],
        ["data", "inspect", road.pack],
        ["data", "inspect", road.chat, "--tokenizer", road.tokenizer],
        ["eval", "ppl", trained / "pretrain", "--data", road.text, "--device", "cpu"],
        ["runs", trained],
    ):
        code, out, told = call(*args, "--json")
        assert code == 0, told
        json.loads(out)
        code, out, told = call(*args)
        assert code == 0, told
        assert out


def test_sample_is_the_same_for_the_same_seed(trained, call):
    args = ["sample", trained / "pretrain", "--prompt", "the king", "--max-tokens", "8", "--device", "cpu", "--seed"]
    one, two, other = (call(*args, seed) for seed in (1, 1, 2))
    assert one[0] == 0, one[2]
    assert one == two
    assert one[1] != other[1]
    elsewhere = slm(*args, 1)  # in a process of its own
    assert (elsewhere.returncode, elsewhere.stdout.decode()) == one[:2]
