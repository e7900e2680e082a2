"""Packs.

What goes in comes out, the same bytes with workers, whole or absent, and each way to break has a
line.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from packed import take

from slm_fn.data.io.documents import Document
from slm_fn.data.io.holdout import is_held_out
from slm_fn.data.pack import dataset as packs
from slm_fn.data.pack import writer
from slm_fn.text.tokenizer import Tokenizer

from ..conftest import DOCUMENTS

MakePack = Callable[..., packs.Pack]


def everything(pack: packs.Pack, split: str) -> list[int]:
    return take(pack, split, 0, pack.info.splits[split].tokens).tolist()


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_documents_come_back_each_behind_its_start_token(
    make_pack: MakePack, tokenizer: Tokenizer
) -> None:
    pack = make_pack()
    for split, is_val in (("train", False), ("val", True)):
        expected = [d for d in DOCUMENTS if is_held_out(d.text, 0.2) == is_val]
        assert len(expected) >= 3
        assert everything(pack, split) == [
            i for d in expected for i in [0, *tokenizer.encode(d.text)]
        ]
        info = pack.info.splits[split]
        assert info.documents == len(expected)
        assert info.num_bytes == sum(len(d.text.encode()) for d in expected)
        assert [s.tokens for s in info.shards][:-1] == [300] * (len(info.shards) - 1)
    assert len(pack.shards["train"]) > 3
    assert Tokenizer.load(pack.path / "tokenizer.json") == tokenizer


@pytest.mark.parametrize(
    ("vocab_size", "dtype", "width"),
    [(300, "<u2", 2), (1 << 16, "<u2", 2), ((1 << 16) + 1, "<u4", 4)],
)
def test_ids_are_little_endian_and_as_wide_as_the_vocabulary_needs(
    make_pack: MakePack, vocab_size: int, dtype: str, width: int
) -> None:
    pack = make_pack(vocab_size=vocab_size, shard_size=1 << 20)
    raw = (pack.path / "train/shard_00000.bin").read_bytes()
    assert len(raw) == width * pack.info.splits["train"].tokens
    assert np.frombuffer(raw, dtype).tolist() == everything(pack, "train")


def test_packing_streams(make_pack: MakePack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slm_fn.data.pack.encode.BATCH_DOCUMENTS", 2)
    read, behind = 0, []

    def documents() -> Iterator[Document]:
        nonlocal read
        for i in range(200):
            read += 1
            yield Document(f"{i}", f"text {i}")

    make_pack(documents=documents(), progress=lambda done: behind.append(read - done.num_chunks))
    assert len(behind) == 100
    assert max(behind) <= 2 * 8, "more than eight batches in memory"


def test_progress_ends_with_what_was_packed(make_pack: MakePack) -> None:
    told: list[writer.PackProgress] = []
    info = make_pack(progress=told.append).info
    train, val = info.splits["train"], info.splits["val"]
    assert told[-1] == (len(DOCUMENTS), train.tokens + val.tokens, train.num_bytes + val.num_bytes)


def test_documents_held_out_by_name_and_no_others(
    make_pack: MakePack, tokenizer: Tokenizer
) -> None:
    pack = make_pack(val_names=("doc-03",), val_fraction=0.9)
    assert everything(pack, "val") == [0, *tokenizer.encode(DOCUMENTS[3].text)]
    assert pack.info.splits["train"].documents == len(DOCUMENTS) - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": []}, "nothing to pack"),
        ({"val_names": ("doc-03", "doc-99")}, "no document is named doc-99"),
        ({"val_fraction": 1.0}, "all 40 documents are held out"),
        (
            {"documents": DOCUMENTS[:1], "val_fraction": 0.0, "seq_len": 500},
            "less than one window of 501",
        ),
        ({"vocab_size": 270}, "outside its vocabulary of 270"),
        ({"shard_size": 0}, "at least 1"),
        ({"val_fraction": 1.5}, "within 0 and 1"),
    ],
)
def test_what_cannot_be_packed_is_said_and_leaves_the_old_pack(
    make_pack: MakePack, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    before = contents(make_pack().path)
    with pytest.raises(ValueError, match=message):
        make_pack(**changes)
    assert contents(tmp_path / "pack") == before
    assert list(tmp_path.iterdir()) == [tmp_path / "pack"], "something was left beside it"


def test_an_error_in_a_worker_arrives_here(make_pack: MakePack) -> None:
    with pytest.raises(ValueError, match="surrogates not allowed"):
        make_pack(documents=[*DOCUMENTS, Document("bad", "\ud800")], workers=1)


def test_a_broken_pack_is_never_taken_for_one(make_pack: MakePack, tmp_path: Path) -> None:
    shard = "train/shard_00001.bin"

    def broken(
        name: str,
        harm: Callable[[Path], object],
        error: type[Exception],
        message: str,
        verify: bool,
    ) -> None:
        path = make_pack(name).path
        harm(path)
        with pytest.raises(error, match=message) as raised:
            packs.open_pack(path, verify)
        assert str(path) in str(raised.value)

    def flip(path: Path) -> None:
        data = bytearray((path / shard).read_bytes())
        data[5] ^= 1
        (path / shard).write_bytes(data)

    def metadata(text: str) -> Callable[[Path], object]:
        return lambda path: (path / "metadata.json").write_text(text)

    broken(
        "cut", lambda p: os.truncate(p / shard, 100), ValueError, "100 bytes instead of 600", False
    )
    broken(
        "lost", lambda p: (p / shard).unlink(), FileNotFoundError, f"lacks its shard {shard}", False
    )
    broken("flipped", flip, ValueError, "another checksum", True)
    broken("empty", metadata(""), ValueError, "does not describe a pack", False)
    broken("list", metadata("[]"), ValueError, "does not describe a pack", False)
    broken(
        "later",
        metadata('{"format_version": 9}'),
        ValueError,
        "format version 9, this program reads 1",
        False,
    )
    broken(
        "partial", metadata('{"format_version": 1}'), ValueError, "missing required field", False
    )
    with pytest.raises(FileNotFoundError, match=r"no pack at .*slm data pack"):
        packs.open_pack(tmp_path)


def test_another_tokenizer_is_refused(make_pack: MakePack, tokenizer: Tokenizer) -> None:
    pack = make_pack()
    packs.check_tokenizer(pack, tokenizer.fingerprint)
    with pytest.raises(ValueError, match="tokenizer does not belong to this pack"):
        packs.check_tokenizer(pack, "0" * 64)


def test_take_goes_round_and_an_empty_split_has_nothing(make_pack: MakePack) -> None:
    pack = make_pack(val_fraction=0.0)
    row = everything(pack, "train")
    assert take(pack, "train", len(row) - 2, 5).tolist() == [*row[-2:], *row[:3]]
    assert take(pack, "train", 290, 700).tolist() == row[290:990]
    with pytest.raises(ValueError, match="holds no val tokens"):
        take(pack, "val", 0, 1)


def test_a_folder_with_other_files_is_no_place_for_a_pack(
    make_pack: MakePack, tmp_path: Path
) -> None:
    """The folder is replaced as a whole: the texts that are packed, say, would be gone."""
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"texts holds other files \(a.txt\)"):
        make_pack("texts")
    with pytest.raises(ValueError, match="is a file"):
        make_pack("texts/a.txt")
    assert (texts / "a.txt").read_text() == "precious"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["texts"]
    make_pack("new")
    make_pack("new", seq_len=8)
    (tmp_path / "empty").mkdir()
    make_pack("empty")


def test_the_current_folder_can_become_a_pack(
    make_pack: MakePack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    make_pack("here", out=".")


@pytest.mark.parametrize("file", ["../other.bin", "{root}/other.bin", "train/../../other.bin"])
def test_a_pack_leads_nowhere_else(make_pack: MakePack, tmp_path: Path, file: str) -> None:
    pack = make_pack(val_fraction=0.0, shard_size=1 << 20)
    (tmp_path / "other.bin").write_bytes((pack.path / "train/shard_00000.bin").read_bytes())
    told = (pack.path / "metadata.json").read_text()
    (pack.path / "metadata.json").write_text(
        told.replace("train/shard_00000.bin", file.format(root=tmp_path))
    )
    with pytest.raises(ValueError, match="does not describe a pack"):
        packs.open_pack(pack.path)


def test_a_number_of_workers_below_zero_is_told_as_such(make_pack: MakePack) -> None:
    with pytest.raises(ValueError, match="workers -1"):
        make_pack(workers=-1)
