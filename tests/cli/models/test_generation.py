"""`slm sample`, `chat` and `serve`.

The text of the library's own generation, and clean shutdown.
"""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from click.testing import CliRunner

from slm_fn.cli.models import serve as serve_command
from slm_fn.cli.models.chat import command as chat
from slm_fn.cli.models.sample import command as sample
from slm_fn.cli.output import printable
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.generation import generate
from slm_fn.pipeline.model_folder import GenerationConfig
from slm_fn.serve.config import ServeConfig
from slm_fn.text.messages import Message
from slm_fn.text.training import bpe
from slm_fn.train import checkpoint


def write_model(path, rough, context, generation):
    tokenizer = bpe.train(["to be or not to be, that is the question"] * 3, vocab_size=280)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=32,
        context=context,
    )
    path.mkdir()
    for name, data in models.metadata_files(config, tokenizer, generation).items():
        (path / name).write_bytes(data)
    checkpoint.save_tree(path / checkpoint.WEIGHTS, rough(config))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rough):
    return write_model(
        tmp_path_factory.mktemp("generation") / "small", rough, 64, GenerationConfig()
    )


@pytest.fixture(scope="module")
def loaded(folder):
    return models.load(folder, "cpu", decode="auto")


def run(command, *args, typed=None):
    done = CliRunner().invoke(
        command, [*map(str, args), "--device", "cpu"], input=typed, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    return done


def generated(model, ids, config, seed, max_tokens):
    """The text that the library generates."""
    request = generate.make_request(model, ids, config, seed, max_tokens)
    return "".join(delta.text for delta in generate.stream_text(model, request))


def test_sample_prints_what_the_library_generates(folder, loaded):
    args = (
        folder,
        "--prompt",
        "to be",
        "--max-tokens",
        12,
        "--temperature",
        0.9,
        "--top-k",
        9,
        "--seed",
        3,
        "--num",
        2,
    )
    config = generate.sampling_config(loaded, {"temperature": 0.9, "top_k": 9})
    expected = [
        generated(loaded, generate.encode_text(loaded, "to be"), config, seed, 12)
        for seed in (3, 4)
    ]
    rows = json.loads(run(sample, *args, "--json").stdout)["samples"]
    assert [row["text"] for row in rows] == expected
    assert {row["finish"] for row in rows} <= {"stop", "length"}
    plain, streamed = run(sample, *args).stdout, run(sample, *args, "--stream").stdout
    assert plain == streamed == "".join(f"to be{sample}\n" for sample in expected)


def test_sample_greedy_and_stops(folder):
    def sample_row(*args):
        return json.loads(
            run(sample, folder, "--prompt", "to", "--max-tokens", 30, "--json", *args).stdout
        )["samples"][0]

    greedy = sample_row("--greedy")
    assert greedy == sample_row("--temperature", 0)
    stop = greedy["text"][5:7]
    cut = sample_row("--greedy", "--stop", stop)
    assert cut["text"] == greedy["text"][: greedy["text"].index(stop)]
    assert cut["finish"] == "stop"


@pytest.mark.parametrize("wrong", [("--num", 0), ("--max-tokens", 0)])
def test_sample_needs_positive_counts(folder, wrong):
    done = CliRunner().invoke(sample, [folder, "--prompt", "x", *map(str, wrong)])
    assert done.exit_code == 2


def test_incomplete_structured_output_is_noted(folder):
    cut = run(sample, folder, "--prompt", "to", "--regex", "[be]{9}", "--max-tokens", 3)
    complete = run(sample, folder, "--prompt", "to", "--regex", "[be]{9}", "--max-tokens", 30)
    assert cut.stderr == "cut at 3 tokens: the structured output is incomplete\n"
    assert complete.stderr == ""


def saved(path):
    return [(m["role"], m["content"]) for m in json.loads(path.read_text())["messages"]]


def test_chat_answers_and_saves_the_conversation(folder, loaded, tmp_path):
    out = tmp_path / "chat.jsonl"
    done = run(
        chat, folder, "--temperature", 0, "--max-tokens", 9, typed=f"to be\n/save {out}\n/exit\n"
    )
    ids = generate.encode_chat(loaded, [Message("user", "to be")])
    greedy = generate.sampling_config(loaded, {"temperature": 0.0})
    expected = generated(loaded, ids, greedy, 1, 9)
    assert saved(out) == [("user", "to be"), ("assistant", expected)]
    assert printable(expected) in done.stdout


def test_chat_commands(folder, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    typed = f"/system be kind\nhello\n/save {a}\n/reset\n/save {b}\n/system\n/save {c}\n/what\n"
    done = run(chat, folder, "--max-tokens", 3, typed=typed)  # the end of the input ends the chat
    assert [role for role, _ in saved(a)] == ["system", "user", "assistant"]
    assert saved(b) == [("system", "be kind")]
    assert saved(c) == []
    assert done.stderr.count("/reset clears") == 1


def test_chat_drops_the_oldest_turns_and_notes_it(folder, loaded, tmp_path):
    out = tmp_path / "chat.jsonl"
    typed = "".join(f"question {i}\n" for i in range(6)) + f"/save {out}\n"
    done = run(chat, folder, "--system", "be", "--max-tokens", 4, typed=typed)
    assert "oldest turn" in done.stderr
    kept = saved(out)
    assert kept[0] == ("system", "be")
    assert kept[-2] == ("user", "question 5")
    assert len(kept) < 13
    assert (
        len(generate.encode_chat(loaded, [Message(*m) for m in kept[:-1]])) < loaded.config.context
    )


def test_chat_reports_a_message_that_does_not_fit_and_continues(folder, tmp_path):
    out = tmp_path / "chat.jsonl"
    done = run(chat, folder, "--max-tokens", 4, typed="long " * 90 + f"\nto be\n/save {out}\n")
    assert "maximum context length is 64 tokens" in done.stderr
    assert [role for role, _ in saved(out)] == ["user", "assistant"]


def test_a_model_cannot_move_the_cursor():
    assert printable("a\x1b[2Jb\r\n\tc\x9b\u202e é🙂") == "a[2Jb\n\tc é🙂"


# ---- serve, in a process ----


def serve(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "slm_fn.cli.main", "serve", *map(str, args), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_serve_prints_its_address_and_drains_on_shutdown(tmp_path, rough):
    endless = write_model(tmp_path / "endless", rough, 4096, GenerationConfig(stop=()))
    with serve(endless, "--port", 0) as process:
        try:
            url = process.stdout.readline().split()[2].rstrip("/")
            assert httpx.get(f"{url}/health/ready", timeout=30).json() == {
                "status": "ready"
            }  # as soon as the address is printed
            assert httpx.get(f"{url}/health", timeout=30).json() == {
                "status": "ok",
                "model": "endless",
                "active": 0,
            }
            assert httpx.get(f"{url}/health", headers={"host": "evil.example"}).status_code == 403
            body = {
                "model": "endless",
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 800,
                "stream": True,
            }
            with httpx.stream(
                "POST", f"{url}/v1/chat/completions", json=body, timeout=60
            ) as answer:
                lines = answer.iter_lines()
                next(lines)
                process.send_signal(signal.SIGTERM)
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            assert '"finish_reason":"length"' in rest[-2]
            assert process.wait(20) == 0
        finally:
            process.kill()
        engine, stopping = process.stderr.read().splitlines()
        assert engine.startswith("decoding engine: ")
        assert (
            stopping
            == "shutting down: running replies may take 30 s to finish; Ctrl+C stops them at once"
        )


def test_the_prefill_options_of_serve_reach_its_settings(folder, monkeypatch):
    configs = []

    def collect(model, address, loading, config):
        configs.append(config)

    monkeypatch.setattr(serve_command, "_serve", collect)
    run(serve_command.command, folder, "--prefill-chunk", 8, "--prefix-tokens", 0)
    run(serve_command.command, folder)
    assert [config.prefill_chunk for config in configs] == [8, ServeConfig().prefill_chunk]
    defaults = ServeConfig().prefix_cache_tokens
    assert [config.prefix_cache_tokens for config in configs] == [0, defaults]


def test_serve_names_a_port_in_use(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve(folder, "--port", port) as process:
            assert process.wait(60) == 2
            error = process.stderr.read()
    assert error.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in error


def test_every_sampling_option_reaches_the_model(folder, loaded):
    own = loaded.tokenizer.encode("or")
    given = {
        "temperature": 1.5,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.01,
        "typical_p": 0.8,
        "repetition_penalty": 1.1,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {9: 2.5},
        "bad_words": (tuple(own), tuple(loaded.tokenizer.encode(" or"))),
    }
    args = [
        "--typical-p",
        0.8,
        "--temperature",
        1.5,
        "--top-k",
        40,
        "--top-p",
        0.9,
        "--min-p",
        0.01,
    ]
    args += ["--repetition-penalty", 1.1, "--frequency-penalty", 0.5, "--presence-penalty", -0.5]
    args += ["--logit-bias", "9=2.5", "--bad-word", "or"]
    done = run(sample, folder, "--prompt", "to be", "--max-tokens", 12, "--json", *args)
    config = generate.sampling_config(loaded, given)
    ids = generate.encode_text(loaded, "to be")
    expected = generated(loaded, ids, config, 0, 12)
    assert json.loads(done.stdout)["samples"][0]["text"] == expected
    defaults = generate.sampling_config(loaded, {})
    assert expected != generated(loaded, ids, defaults, 0, 12)


def test_a_reply_follows_its_constraint(folder, tmp_path):
    schema, lark = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": [true, false]}')
    lark.write_text('start: "a" | "b"')
    constraints = {
        ("--json-schema", schema): ("true", "false"),
        ("--choice", "yes", "--choice", "no"): ("yes", "no"),
        ("--regex", "x{3}"): ("xxx",),
        ("--grammar", lark): ("a", "b"),
    }
    for args, good in constraints.items():
        (row,) = json.loads(run(sample, folder, "--prompt", "to be", "--json", *args).stdout)[
            "samples"
        ]
        assert row["text"] in good
        assert row["finish"] == "stop"
    printed = run(chat, folder, "--choice", "yes", typed="to be\n/exit\n").stdout
    assert "model yes\n" in printed
    (row,) = json.loads(run(sample, folder, "--prompt", "a", "--json", "--json-object").stdout)[
        "samples"
    ]
    assert row["text"].startswith("{")
    lark.write_text(
        'start: "a" <|user|>'
    )  # no text can be a special token, so the grammar never ends
    (row,) = json.loads(run(sample, folder, "--prompt", "a", "--json", "--grammar", lark).stdout)[
        "samples"
    ]
    assert (row["text"], row["finish"]) == ("a", "length")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--regex", "a", "--choice", "b"], "give one of --json-schema"),
        (["--logit-bias", "to=1"], "--logit-bias takes ID=BIAS"),
        (["--logit-bias", "999=1"], "logit_bias names token 999; the vocabulary has 2"),
        (["--bad-word", ""], "a bad word must not be empty"),
        (["--json-schema", "nowhere.json"], "cannot read nowhere.json"),
        (["--regex", "("], "unclosed group"),
        (["--typical-p", "0"], "typical_p must be in (0, 1]"),
        (
            ["--choice", "a", "--speculate", "ngram"],
            "--speculate cannot be combined with structured output",
        ),
    ],
)
def test_invalid_settings_are_one_line(folder, args, message):
    done = CliRunner().invoke(sample, [folder, "--prompt", "a", "--device", "cpu", *args])
    assert done.exit_code
    assert message in f"{done.output}{done.exception}"
    assert isinstance(
        done.exception, SystemExit | ValueError
    )  # the entry point turns these into one line and exit 2
