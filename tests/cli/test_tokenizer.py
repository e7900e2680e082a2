"""cli/tokenizer.py and cli/inspect.py: what a user sees of tokenizers and data, and the pictures."""

import json

import pytest
from click.testing import CliRunner

from slm_fn.cli import inspect as data_inspect
from slm_fn.cli import tokenizer as cli
from slm_fn.text.tokenizer import Tokenizer


def run(command, *args, stdin=None):
    return CliRunner().invoke(command, [str(arg) for arg in args], input=stdin, catch_exceptions=False)


def test_inspect_shows_what_it_is_made_of(road):
    shown = run(cli.command, "inspect", road.tokenizer, "--text", "the king <|end|>").output
    for word in ("bpe", "qwen2", "round trip", "yes", "bytes per token", "tokens by length in bytes"):
        assert word in shown
    assert "5:<|end|>" not in shown.rpartition("\n\n")[2]  # the text, token by token: no control token


def test_inspect_as_json_of_a_corpus_and_a_picture(road, tmp_path):
    args = ("inspect", road.pack, "--file", road.text, "--plot", tmp_path / "t.png", "--json")
    told = json.loads(run(cli.command, *args).output)
    assert (told["kind"], told["documents"], told["round_trip"]) == ("bpe", 8, True)
    assert told["bytes"] == sum(file.stat().st_size for file in road.text.iterdir())
    assert told["plot"] == str(tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_s_name_is_looked_at_before_the_work(road, tmp_path):
    for command, args in (
        (cli.command, ("inspect", tmp_path / "none.json")),
        (data_inspect.command, (tmp_path / "none",)),
    ):
        with pytest.raises(ValueError, match=r"ends in .png or .svg"):
            run(command, *args, "--plot", tmp_path / "a.gif")


@pytest.mark.parametrize("data", [b"to be <|end|>\n", b"\xff\x00\xc3", "né 🙂".encode(), b""])
def test_any_bytes_go_through_encode_and_decode(road, data):
    ids = run(cli.command, "encode", road.tokenizer, stdin=data)
    assert run(cli.command, "decode", road.pack, stdin=ids.output).stdout_bytes == data


def test_control_tokens_only_where_allowed(road):
    ours = Tokenizer.load(road.tokenizer)
    text = "to be<|end|>"
    for allowed, wanted in (("none", ours.encode(text)), ("all", [*ours.encode("to be"), 5])):
        said = run(cli.command, "encode", road.tokenizer, "--allowed-special", allowed, stdin=text).output
        assert [int(word) for word in said.split()] == wanted
    with pytest.raises(ValueError, match=r"spells the control token <\|end\|> at character 5"):
        run(cli.command, "encode", road.tokenizer, "--allowed-special", "raise", stdin=text)


@pytest.mark.parametrize("word", ["999999", "-1", "x", "٣"])
def test_what_is_no_id_is_said(road, word):
    with pytest.raises(ValueError, match="is no token id"):
        run(cli.command, "decode", road.tokenizer, stdin=word)


def test_export_says_how_to_load_it(road, tmp_path):
    shown = run(cli.command, "export", road.tokenizer, "--to", "hf", "--out", tmp_path / "hf").output
    assert f'AutoTokenizer.from_pretrained("{tmp_path / "hf"}")' in shown
    told = json.loads(
        run(cli.command, "export", road.pack, "--to", "tiktoken", "--out", tmp_path / "tt", "--json").output
    )
    assert sorted(told["files"]) == sorted(file.name for file in (tmp_path / "tt").iterdir())


def test_a_sample_cannot_move_the_cursor(tmp_path):
    (tmp_path / "a.txt").write_text("one\x1b[2Jtwo")
    assert "one[2Jtwo" in run(data_inspect.command, tmp_path / "a.txt").output


def test_data_inspect_shows_every_kind(road, tmp_path):
    for path, words in (
        (road.pack, ["pack", "shards, checksums right", "train: document lengths", "--- train 0"]),
        (road.text, ["text", "characters", "document lengths"]),
        (road.chat, ["chat", "conversation: trained", "tokens trained"]),
        (road.pairs, ["pairs", "chosen: examples", "rejected: "]),
    ):
        picture = tmp_path / f"{path.name}.svg"
        done = run(data_inspect.command, path, "--tokenizer", road.tokenizer, "--plot", picture, "--num", 1)
        assert done.exit_code == 0
        assert all(word in done.output for word in words), done.output
        assert picture.read_text().startswith("<?xml")
        told = json.loads(run(data_inspect.command, path, "--tokenizer", road.tokenizer, "--json").output)
        assert told["kind"] == words[0]
        assert told["figures"]
        assert told["samples"]
