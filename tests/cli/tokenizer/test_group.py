"""`slm tokenizer` and `slm data inspect`: what they print and plot."""

import json

import pytest
from click.testing import CliRunner

from slm_fn.cli.data import inspect as data_inspect
from slm_fn.cli.tokenizer import group
from slm_fn.text.tokenizer import Tokenizer


def run(command, *args, stdin=None):
    return CliRunner().invoke(
        command, [str(arg) for arg in args], input=stdin, catch_exceptions=False
    )


def test_inspect_describes_the_tokenizer(project):
    printed = run(group.command, "inspect", project.tokenizer, "--text", "the king <|end|>").output
    for word in (
        "bpe",
        "qwen2",
        "round trip",
        "yes",
        "bytes per token",
        "tokens by length in bytes",
    ):
        assert word in printed
    assert "5:<|end|>" not in printed.rpartition("\n\n")[2]  # encoded as plain text


def test_inspect_a_corpus_as_json_and_plot_it(project, tmp_path):
    args = ("inspect", project.pack, "--file", project.text, "--plot", tmp_path / "t.png", "--json")
    result = json.loads(run(group.command, *args).output)
    assert (result["kind"], result["documents"], result["round_trip"]) == ("bpe", 8, True)
    assert result["bytes"] == sum(file.stat().st_size for file in project.text.iterdir())
    assert result["plot"] == str(tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_s_suffix_is_checked_first(project, tmp_path):
    for command, args in (
        (group.command, ("inspect", tmp_path / "none.json")),
        (data_inspect.command, (tmp_path / "none",)),
    ):
        with pytest.raises(ValueError, match=r"ends in .png or .svg"):
            run(command, *args, "--plot", tmp_path / "a.gif")


@pytest.mark.parametrize("data", [b"to be <|end|>\n", b"\xff\x00\xc3", "né 🙂".encode(), b""])
def test_any_bytes_go_through_encode_and_decode(project, data):
    ids = run(group.command, "encode", project.tokenizer, stdin=data)
    assert run(group.command, "decode", project.pack, stdin=ids.output).stdout_bytes == data


def test_special_tokens_only_where_allowed(project):
    tokenizer = Tokenizer.load(project.tokenizer)
    text = "to be<|end|>"
    for allowed, expected in (
        ("none", tokenizer.encode(text)),
        ("all", [*tokenizer.encode("to be"), 5]),
    ):
        printed = run(
            group.command, "encode", project.tokenizer, "--allowed-special", allowed, stdin=text
        ).output
        assert [int(word) for word in printed.split()] == expected
    with pytest.raises(ValueError, match=r"spells the special token <\|end\|> at character 5"):
        run(group.command, "encode", project.tokenizer, "--allowed-special", "raise", stdin=text)


@pytest.mark.parametrize("word", ["999999", "-1", "x", "٣"])
def test_a_word_that_is_not_an_id_is_an_error(project, word):
    with pytest.raises(ValueError, match="is not a token id"):
        run(group.command, "decode", project.tokenizer, stdin=word)


def test_export_prints_how_to_load_it(project, tmp_path):
    printed = run(
        group.command, "export", project.tokenizer, "--to", "hf", "--out", tmp_path / "hf"
    ).output
    assert f'AutoTokenizer.from_pretrained("{tmp_path / "hf"}")' in printed
    result = json.loads(
        run(
            group.command,
            "export",
            project.pack,
            "--to",
            "tiktoken",
            "--out",
            tmp_path / "tt",
            "--json",
        ).output
    )
    assert sorted(result["files"]) == sorted(file.name for file in (tmp_path / "tt").iterdir())


def test_a_sample_cannot_move_the_cursor(tmp_path):
    (tmp_path / "a.txt").write_text("one\x1b[2Jtwo")
    assert "one[2Jtwo" in run(data_inspect.command, tmp_path / "a.txt").output


def test_data_inspect_shows_every_kind(project, tmp_path):
    for path, words in (
        (
            project.pack,
            ["pack", "shards, checksums right", "train: document lengths", "--- train 0"],
        ),
        (project.text, ["text", "characters", "document lengths"]),
        (project.chat, ["chat", "conversation: trained", "tokens trained"]),
        (project.pairs, ["pairs", "chosen: examples", "rejected: "]),
    ):
        plot = tmp_path / f"{path.name}.svg"
        done = run(
            data_inspect.command,
            path,
            "--tokenizer",
            project.tokenizer,
            "--plot",
            plot,
            "--num",
            1,
        )
        assert done.exit_code == 0
        assert all(word in done.output for word in words), done.output
        assert plot.read_text().startswith("<?xml")
        result = json.loads(
            run(data_inspect.command, path, "--tokenizer", project.tokenizer, "--json").output
        )
        assert result["kind"] == words[0]
        assert result["figures"]
        assert result["samples"]
