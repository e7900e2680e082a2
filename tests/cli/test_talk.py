"""cli/sample, chat and serve: the same words as the model says when asked directly, and an end that is an end."""

import json
import os
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from click.testing import CliRunner

from slm_fn.cli.chat import command as chat
from slm_fn.cli.options import printable
from slm_fn.cli.sample import command as sample
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model as models
from slm_fn.pipeline import talk
from slm_fn.pipeline.model import Generation
from slm_fn.text import bpe
from slm_fn.text.chat import Message
from slm_fn.train import checkpoint


def write_model(place, rough, context, generation):
    tokenizer = bpe.train(["to be or not to be, that is the question"] * 3, vocab_size=280)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=32, context=context
    )
    place.mkdir()
    for name, data in models.describe(config, tokenizer, generation).items():
        (place / name).write_bytes(data)
    checkpoint.save_tree(place / checkpoint.WEIGHTS, rough(config))
    return str(place)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, rough):
    return write_model(tmp_path_factory.mktemp("talk") / "small", rough, 64, Generation())


@pytest.fixture(scope="module")
def loaded(folder):
    return models.load(folder, "cpu", decode="auto")


def run(command, *args, typed=None):
    done = CliRunner().invoke(command, [*map(str, args), "--device", "cpu"], input=typed, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done


def text(pieces):
    return "".join(piece.text for piece in pieces)


def test_sample_says_what_the_model_says(folder, loaded):
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
    config = talk.sampling(loaded, {"temperature": 0.9, "top_k": 9})
    want = [text(talk.write(loaded, talk.text_ids(loaded, "to be"), config, seed, 12)) for seed in (3, 4)]
    rows = json.loads(run(sample, *args, "--json").stdout)["samples"]
    assert [row["text"] for row in rows] == want
    assert {row["finish"] for row in rows} <= {"stop", "length"}
    plain, streamed = run(sample, *args).stdout, run(sample, *args, "--stream").stdout
    assert plain == streamed == "".join(f"to be{said}\n" for said in want)


def test_sample_greedy_and_stops(folder):
    def said(*args):
        return json.loads(run(sample, folder, "--prompt", "to", "--max-tokens", 30, "--json", *args).stdout)["samples"][
            0
        ]

    greedy = said("--greedy")
    assert greedy == said("--temperature", 0)
    stop = greedy["text"][5:7]
    cut = said("--greedy", "--stop", stop)
    assert cut["text"] == greedy["text"][: greedy["text"].index(stop)]
    assert cut["finish"] == "stop"


@pytest.mark.parametrize("wrong", [("--num", 0), ("--max-tokens", 0)])
def test_sample_refuses_nothing_to_do(folder, wrong):
    done = CliRunner().invoke(sample, [folder, "--prompt", "x", *map(str, wrong)])
    assert done.exit_code == 2


def test_a_form_that_was_cut_is_told(folder):
    cut = run(sample, folder, "--prompt", "to", "--regex", "[be]{9}", "--max-tokens", 3)
    whole = run(sample, folder, "--prompt", "to", "--regex", "[be]{9}", "--max-tokens", 30)
    assert cut.stderr == "cut at 3 tokens: the form is not complete\n"
    assert whole.stderr == ""


def saved(place):
    return [(m["role"], m["content"]) for m in json.loads(place.read_text())["messages"]]


def test_chat_answers_and_saves_the_conversation(folder, loaded, tmp_path):
    out = tmp_path / "chat.jsonl"
    done = run(chat, folder, "--temperature", 0, "--max-tokens", 9, typed=f"to be\n/save {out}\n/exit\n")
    ids = talk.chat_ids(loaded, [Message("user", "to be")])
    want = text(talk.write(loaded, ids, talk.sampling(loaded, {"temperature": 0.0}), 1, 9))
    assert saved(out) == [("user", "to be"), ("assistant", want)]
    assert printable(want) in done.stdout


def test_chat_commands(folder, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    typed = f"/system be kind\nhello\n/save {a}\n/reset\n/save {b}\n/system\n/save {c}\n/what\n"
    done = run(chat, folder, "--max-tokens", 3, typed=typed)  # and ends with its input
    assert [role for role, _ in saved(a)] == ["system", "user", "assistant"]
    assert saved(b) == [("system", "be kind")]
    assert saved(c) == []
    assert done.stderr.count("/reset forgets") == 1


def test_chat_drops_the_oldest_turns_and_says_so(folder, loaded, tmp_path):
    out = tmp_path / "chat.jsonl"
    typed = "".join(f"question {i}\n" for i in range(6)) + f"/save {out}\n"
    done = run(chat, folder, "--system", "be", "--max-tokens", 4, typed=typed)
    assert "oldest turn" in done.stderr
    kept = saved(out)
    assert kept[0] == ("system", "be")
    assert kept[-2] == ("user", "question 5")
    assert len(kept) < 13
    assert len(talk.chat_ids(loaded, [Message(*m) for m in kept[:-1]])) < loaded.config.context


def test_chat_tells_of_a_message_that_does_not_fit_and_goes_on(folder, tmp_path):
    out = tmp_path / "chat.jsonl"
    done = run(chat, folder, "--max-tokens", 4, typed="long " * 90 + f"\nto be\n/save {out}\n")
    assert "maximum context length is 64 tokens" in done.stderr
    assert [role for role, _ in saved(out)] == ["user", "assistant"]


def test_a_model_cannot_move_the_cursor():
    assert printable("a\x1b[2Jb\r\n\tc\x9b\u202e é🙂") == "a[2Jb\n\tc é🙂"


# ---- serve, as a process ----


def serve(*args):
    return subprocess.Popen(
        [sys.executable, "-m", "slm_fn.cli.main", "serve", *map(str, args), "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_serve_prints_its_address_and_lets_a_reply_end_when_it_is_stopped(tmp_path, rough):
    endless = write_model(tmp_path / "endless", rough, 4096, Generation(stop=()))
    with serve(endless, "--port", 0) as process:
        try:
            url = process.stdout.readline().split()[2].rstrip("/")
            assert httpx.get(f"{url}/health/ready", timeout=30).json() == {
                "status": "ready"
            }  # once the address is told
            assert httpx.get(f"{url}/health", timeout=30).json() == {"status": "ok", "model": "endless", "active": 0}
            assert httpx.get(f"{url}/health", headers={"host": "evil.example"}).status_code == 403
            body = {
                "model": "endless",
                "messages": [{"role": "user", "content": "x"}],
                "max_tokens": 800,
                "stream": True,
            }
            with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as answer:
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
        assert engine.startswith("decoding: ")
        assert stopping == "stopping: what is being written may end, for 30 s; Ctrl+C ends it at once"


def test_serve_names_a_port_that_is_taken(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with serve(folder, "--port", port) as process:
            assert process.wait(60) == 2
            error = process.stderr.read()
    assert error.count("\n") == 1
    assert f"cannot listen on 127.0.0.1:{port}" in error


def test_every_setting_of_sampling_reaches_the_model(folder, loaded):
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
    args = ["--typical-p", 0.8, "--temperature", 1.5, "--top-k", 40, "--top-p", 0.9, "--min-p", 0.01]
    args += ["--repetition-penalty", 1.1, "--frequency-penalty", 0.5, "--presence-penalty", -0.5]
    args += ["--logit-bias", "9=2.5", "--bad-word", "or"]
    done = run(sample, folder, "--prompt", "to be", "--max-tokens", 12, "--json", *args)
    config = talk.sampling(loaded, given)
    want = text(talk.write(loaded, talk.text_ids(loaded, "to be"), config, 0, 12))
    assert json.loads(done.stdout)["samples"][0]["text"] == want
    assert want != text(talk.write(loaded, talk.text_ids(loaded, "to be"), talk.sampling(loaded, {}), 0, 12))


def test_a_reply_has_the_form_that_was_asked_for(folder, tmp_path):
    schema, lark = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text('{"enum": [true, false]}')
    lark.write_text('start: "a" | "b"')
    forms = {
        ("--json-schema", schema): ("true", "false"),
        ("--choice", "yes", "--choice", "no"): ("yes", "no"),
        ("--regex", "x{3}"): ("xxx",),
        ("--grammar", lark): ("a", "b"),
    }
    for args, good in forms.items():
        (row,) = json.loads(run(sample, folder, "--prompt", "to be", "--json", *args).stdout)["samples"]
        assert row["text"] in good
        assert row["finish"] == "stop"
    said = run(chat, folder, "--choice", "yes", typed="to be\n/exit\n").stdout
    assert "model yes\n" in said
    (row,) = json.loads(run(sample, folder, "--prompt", "a", "--json", "--json-object").stdout)["samples"]
    assert row["text"].startswith("{")
    lark.write_text('start: "a" <|user|>')  # no text can be a control token, so this one comes to no end
    (row,) = json.loads(run(sample, folder, "--prompt", "a", "--json", "--grammar", lark).stdout)["samples"]
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
        (["--choice", "a", "--speculate", "ngram"], "--speculate goes without a form"),
    ],
)
def test_settings_that_cannot_be_are_said_in_a_line(folder, args, message):
    done = CliRunner().invoke(sample, [folder, "--prompt", "a", "--device", "cpu", *args])
    assert done.exit_code
    assert message in f"{done.output}{done.exception}"
    assert isinstance(done.exception, SystemExit | ValueError)  # what the entry point turns into a line and exit 2
