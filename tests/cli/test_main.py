"""`slm`: help is quick and imports no torch, bad input is one line and exit 2, figures are JSON."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions

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
    """Run a command in this process, since imports take seconds: exit status, output and errors."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["slm", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            main()
        return (ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def trained(project, tmp_path_factory):
    """The folder with the runs of pretrain, sft and dpo."""
    out = tmp_path_factory.mktemp("cli")
    common = ["--device", "cpu", "--no-progress", "--json"]
    steps = [
        ("pretrain", project.config_file, "--data", project.pack),
        (
            "sft",
            project.config_file,
            "--init",
            out / "pretrain",
            "--data",
            project.chat,
            "--val-fraction",
            "0.3",
        ),
        (
            "dpo",
            project.config_file,
            "--init",
            out / "sft",
            "--data",
            project.pairs,
            "--val",
            project.pairs,
        ),
    ]
    for args in steps:
        done = slm(*args, "--out", out / args[0], *common)
        assert done.returncode == 0, done.stderr.decode()
        assert json.loads(done.stdout)["step"] > 0
    return out


def test_help_imports_nothing_but_the_command_line():
    """Imports take most of the time; `tests/bench/startup.py` measures it."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "sys.argv = ['slm', '--help']\n"
        "from slm_fn.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*set(sys.modules) - before, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert "pretrain" in done.stdout
    imported = {name.partition(".")[0] for name in done.stderr.split()}
    third_party = imported & set(packages_distributions())
    assert third_party <= {"slm_fn", "click", "colorama"}  # the last is click's on Windows


@pytest.mark.parametrize(
    "command",
    ["demo", "device", "config show", "data prepare", "data pack", "data inspect",
     "tokenizer train", "tokenizer inspect", "tokenizer encode", "tokenizer decode",
     "tokenizer export", "pretrain", "sft", "dpo", "eval ppl", "sample", "chat", "serve",
     "quantize", "keys add", "bench decode", "bench serve", "runs"],
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
        (
            ["pretrain", "tiny", "--set", "model.num_layer=2", "--data", "x", "--out", "y"],
            ["num_layer", "num_layers"],
        ),
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


def test_an_empty_corpus_is_an_error(tmp_path, project, call):
    (tmp_path / "empty.txt").write_text("  \n")
    for args in (
        ["tokenizer", "train", tmp_path, "--out", tmp_path / "t.json"],
        [
            "data",
            "pack",
            "--tokenizer",
            project.tokenizer,
            "--in",
            tmp_path,
            "--out",
            tmp_path / "p",
        ],
    ):
        code, _, errors = call(*args)
        assert code == 2
        lines = errors.splitlines()  # the file that was skipped, and the error
        assert len(lines) == 2, lines
        assert "empty.txt" in lines[0]
        assert lines[1].startswith("slm: the corpus is empty")


def test_a_tokenizer_of_another_pack_is_an_error(tmp_path, project, call):
    pack = shutil.copytree(project.pack, tmp_path / "pack")
    code, _, errors = call(
        "tokenizer", "train", project.text, "--out", pack / "tokenizer.json", "--vocab-size", "300"
    )
    assert code == 0, errors
    code, _, errors = call(
        "pretrain", project.config_file, "--data", pack, "--out", tmp_path / "run"
    )
    assert code == 2
    assert "tokenizer" in errors
    assert len(errors.splitlines()) == 1, errors


def test_a_truncated_checkpoint_is_an_error(tmp_path, trained, call):
    broken = shutil.copytree(
        next((trained / "sft" / "checkpoints").glob("step-*")), tmp_path / "broken"
    )
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    code, _, errors = call("sample", broken, "--prompt", "x")
    assert code == 2
    assert len(errors.splitlines()) == 1, errors


def test_a_prompt_longer_than_the_context_is_an_error(trained, call):
    code, _, errors = call("sample", trained / "pretrain", "--prompt", "to be or not " * 200)
    assert code == 2
    assert "maximum context length is 64" in errors


def test_slm_debug_shows_the_traceback():
    done = slm("pretrain", "tinny", "--data", "x", "--out", "y", SLM_DEBUG="1")
    assert b"Traceback" in done.stderr


def test_encode_and_decode_are_inverse(project):
    text = "to be, <|end|> or né 🙂 not\n".encode()
    ids = slm("tokenizer", "encode", project.tokenizer, stdin=text)
    back = slm("tokenizer", "decode", project.tokenizer, stdin=ids.stdout)
    assert back.stdout == text
    wrong = slm("tokenizer", "decode", project.tokenizer, stdin=b"999999")
    assert wrong.returncode == 2


def test_figures_are_one_json_object(project, trained, call):
    for args in (
        ["device"],
        ["config", "show", "tiny"],
        ["tokenizer", "inspect", project.tokenizer, "--text", "to be"],
        ["data", "inspect", project.pack],
        ["data", "inspect", project.chat, "--tokenizer", project.tokenizer],
        ["eval", "ppl", trained / "pretrain", "--data", project.text, "--device", "cpu"],
        ["runs", trained],
    ):
        code, out, errors = call(*args, "--json")
        assert code == 0, errors
        json.loads(out)
        code, out, errors = call(*args)
        assert code == 0, errors
        assert out


def test_sample_is_the_same_for_the_same_seed(trained, call):
    args = [
        "sample",
        trained / "pretrain",
        "--prompt",
        "the king",
        "--max-tokens",
        "8",
        "--device",
        "cpu",
        "--seed",
    ]
    one, two, other = (call(*args, seed) for seed in (1, 1, 2))
    assert one[0] == 0, one[2]
    assert one == two
    assert one[1] != other[1]
    subprocess_result = slm(*args, 1)
    assert (subprocess_result.returncode, subprocess_result.stdout.decode()) == one[:2]
