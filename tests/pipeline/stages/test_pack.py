"""pipeline/pack.py.

A pack carries its tokenizer, documents begin with the start token, problems are told, counted.
"""

import gzip
import json
import os
import shutil

import pytest
from packed import take

from slm_fn.data.io import documents as sources
from slm_fn.data.io import text_files
from slm_fn.data.pack import dataset as packs
from slm_fn.data.pack import writer
from slm_fn.pipeline.stages.pack import PackConfig, pack_documents, pack_files
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe


@pytest.fixture(scope="module")
def tokenizer(project) -> Tokenizer:
    return Tokenizer.load(project.tokenizer)


def contents(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_documents_come_back_from_the_pack(project, tokenizer, tmp_path):
    documents = list(sources.read([project.text]))
    config = PackConfig(seq_len=32, val_names=("play-0.md",))
    info, problems = pack_files(config, tokenizer, [project.text], tmp_path / "pack")
    pack = packs.open_pack(tmp_path / "pack", verify=True)
    assert problems == 0
    assert pack.info == info
    assert (
        Tokenizer.load(tmp_path / "pack" / "tokenizer.json").fingerprint
        == info.fingerprint
        == tokenizer.fingerprint
    )
    start = tokenizer.special_id(ChatTemplate().bos)
    ids = take(pack, "train", 0, info.splits["train"].tokens).tolist()
    assert ids.count(start) == info.splits["train"].documents == 7
    assert ids[0] == start
    assert tokenizer.decode(ids) == "".join(d.text for d in documents[1:])
    pack_documents(config, tokenizer, documents, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tmp_path / "pack")


def test_a_long_text_in_parts_has_one_start_token_and_the_tokens_of_the_whole(tokenizer, tmp_path):
    text = "".join(f"the king and sweet night {i}\n" for i in range(41_000))
    assert len(text) > text_files.CHUNK_CHARS
    (tmp_path / "long.txt").write_text(text)
    info, _ = pack_files(
        PackConfig(val_fraction=0.0), tokenizer, [tmp_path / "long.txt"], tmp_path / "pack"
    )
    assert info.splits["train"].documents == 1
    ids = take(packs.open_pack(tmp_path / "pack"), "train", 0, info.splits["train"].tokens).tolist()
    assert ids == [tokenizer.special_id(ChatTemplate().bos), *tokenizer.encode(text)]


def test_one_long_text_is_split_by_block(tokenizer, tmp_path):
    (tmp_path / "one.txt").write_text(
        "".join(f"Line {i} of one long text.\n" for i in range(12_000))
    )
    notes: list[str] = []
    info, _ = pack_files(
        PackConfig(), tokenizer, [tmp_path / "one.txt"], tmp_path / "pack", note=notes.append
    )
    assert info.splits["val"].documents == 0
    assert [("--split-by block" in note, "--val-name" in note) for note in notes] == [(True, True)]
    notes.clear()
    config = PackConfig(split_by="block", val_fraction=0.2)
    info, _ = pack_files(
        config, tokenizer, [tmp_path / "one.txt"], tmp_path / "pack", note=notes.append
    )
    assert notes == []
    assert 0.02 < info.splits["val"].num_bytes / (tmp_path / "one.txt").stat().st_size < 0.6
    assert (
        sum(split.num_bytes for split in info.splits.values())
        == (tmp_path / "one.txt").stat().st_size
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (PackConfig(split_by="block", val_fraction=1e-9), "no block of the text"),
        (PackConfig(val_names=("b.txt",), seq_len=200), "less than one window of 201"),
    ],
)
def test_a_validation_split_that_is_of_no_use_is_told(tokenizer, tmp_path, config, words):
    (tmp_path / "a.txt").write_text("the king is here. " * 400)
    (tmp_path / "b.txt").write_text("short")
    notes: list[str] = []
    inputs = [tmp_path / "a.txt", tmp_path / "b.txt"]
    pack_files(config, tokenizer, inputs, tmp_path / "pack", note=notes.append)
    assert len(notes) == 1
    assert words in notes[0]


def test_what_cannot_be_read_is_told_and_the_rest_is_packed(tokenizer, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("the king is here. " * 40)
    (corpus / "b.txt").write_bytes(b"sweet night \xff and more")
    (corpus / "c.jsonl").write_text('{"text": "to be"}\n{"text": 5}\n{"text": "no more"}\n')
    (corpus / "d.txt.gz").write_bytes(gzip.compress(b"a fool " * 5000)[:-20])
    notes: list[str] = []
    config = PackConfig(val_fraction=0.0, seq_len=8)
    info, problems = pack_files(config, tokenizer, [corpus], tmp_path / "pack", note=notes.append)
    assert problems == 3
    assert [
        name in note for name, note in zip(["b.txt", "c.jsonl", "d.txt.gz"], notes, strict=False)
    ] == [True] * 3
    assert "3 inputs could not be read" in notes[3]
    ids = take(packs.open_pack(tmp_path / "pack"), "train", 0, info.splits["train"].tokens).tolist()
    assert "no more" in tokenizer.decode(ids)
    with pytest.raises(ValueError, match=r"b\.txt: byte 12"):
        pack_files(config, tokenizer, [corpus], tmp_path / "strict", strict=True, note=notes.append)


def test_a_slower_engine_is_told_once_and_gives_the_same_ids(tmp_path):
    tokenizer = bpe.train(["the king and a fool"], 300, pattern=r"\w+|\W+")
    assert tokenizer.encoder_backend.name == "tokenizers"
    documents = [sources.Document(f"{i}", f"the king {i} and a fool") for i in range(30)]
    notes: list[str] = []
    info = pack_documents(
        PackConfig(seq_len=8, val_fraction=0.0), tokenizer, documents, tmp_path / "p", notes.append
    )
    assert len(notes) == 1
    assert tokenizer.encoder_backend.reason in notes[0]
    ids = take(packs.open_pack(tmp_path / "p"), "train", 0, info.splits["train"].tokens).tolist()
    start = tokenizer.special_id(ChatTemplate().bos)
    assert ids == [i for d in documents for i in [start, *tokenizer.encode(d.text)]]


class Stopped(BaseException):
    """Ctrl+C, as it were."""


def test_a_stopped_pack_of_files_goes_on_unless_they_changed(tokenizer, tmp_path, monkeypatch):
    rows = [json.dumps({"text": f"the king {i} is here, my lord"}) + "\n" for i in range(400)]
    (tmp_path / "c.jsonl").write_text("".join(rows))
    config = PackConfig(seq_len=8)
    monkeypatch.setattr("slm_fn.data.pack.encode.BATCH_DOCUMENTS", 10)
    monkeypatch.setattr(writer, "JOURNAL_TOKENS", 100)
    real, puts = writer.PackWriter.append, []

    def put(shelf, batch):
        if len(puts) == stop:
            raise Stopped
        puts.append(batch.documents[0].name)
        return real(shelf, batch)

    monkeypatch.setattr(writer.PackWriter, "append", put)
    stop = 25
    with pytest.raises(Stopped):
        pack_files(config, tokenizer, [tmp_path / "c.jsonl"], tmp_path / "p")
    stop = -1
    shutil.copytree(tmp_path / ".p.unfinished", tmp_path / ".q.unfinished")
    puts.clear()
    notes: list[str] = []
    pack_files(config, tokenizer, [tmp_path / "c.jsonl"], tmp_path / "p", note=notes.append)
    assert [note.startswith("resuming: ") for note in notes] == [True]
    assert int(puts[0].removeprefix("c.jsonl:")) > 200
    os.utime(tmp_path / "c.jsonl", (1, 1))
    puts.clear()
    pack_files(config, tokenizer, [tmp_path / "c.jsonl"], tmp_path / "q")
    assert puts[0] == "c.jsonl:1"
    assert contents(tmp_path / "p") == contents(tmp_path / "q")


def test_progress_is_lines_of_share_and_speed(tokenizer, tmp_path, monkeypatch, capsys):
    (tmp_path / "c.jsonl").write_text('{"text": "the king is here"}\n' * 300)
    monkeypatch.setattr("slm_fn.data.pack.encode.BATCH_DOCUMENTS", 20)
    monkeypatch.setattr("slm_fn.pipeline.stages.pack.LINE_SECONDS", 0.0)
    config = PackConfig(seq_len=8, val_fraction=0.0)
    pack_files(config, tokenizer, [tmp_path / "c.jsonl"], tmp_path / "p", live=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 15
    assert all(
        "%" in line and "documents" in line and "MB/s" in line and "left" in line for line in lines
    )
    pack_files(config, tokenizer, [tmp_path / "c.jsonl"], tmp_path / "p", live=True)
    assert "pack" in capsys.readouterr().err


def test_of_very_many_problems_the_first_are_told_and_all_are_counted(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "{broken\n" * 300 + json.dumps({"text": "the king " * 200}) + "\n"
    )
    notes: list[str] = []
    config = PackConfig(seq_len=32, val_fraction=0.0)
    _, problems = pack_files(
        config, tokenizer, [tmp_path / "a.jsonl"], tmp_path / "pack", note=notes.append
    )
    assert problems == 300
    assert len(notes) == 102
    assert "200 more" in notes[100]
    assert "300 inputs" in notes[101]


def test_a_tokenizer_that_encodes_at_random_is_refused(project, tokenizer, tmp_path):
    fields = json.loads(tokenizer.to_json())
    fields["model"]["dropout"] = 0.1
    with pytest.raises(ValueError, match=r"at random \(dropout 0\.1\)"):
        pack_files(
            PackConfig(), Tokenizer.from_json(json.dumps(fields)), [project.text], tmp_path / "pack"
        )
    assert not (tmp_path / "pack").exists()
