"""Packing as it runs.

Batches, workers, shards and kills change no byte; a killed packer goes on where it was.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import build_pack, take

from slm_fn.data.io.documents import Document
from slm_fn.data.io.holdout import is_held_out
from slm_fn.data.pack import dataset as packs
from slm_fn.data.pack import encode, shards, writer

VOCABULARY = 257
FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]


def encode_flat(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Bytes as ids from 1 on; 0 is left for the start token."""
    rows = [np.frombuffer(text.encode(), np.uint8) + np.uint32(1) for text in texts]
    return np.concatenate([np.zeros(0, np.uint32), *rows]), np.cumsum([0, *map(len, rows)])


def pack(out: Path, documents: list[Document], **changes: object) -> packs.PackInfo:
    given = {
        "eos": 0,
        "seq_len": 1,
        "shard_size": 100,
        "json": "{}",
        "fingerprint": "f",
        "vocab_size": 257,
    }
    return build_pack(documents, encode_flat, out, **(given | changes))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def slowly(documents: list[Document], fraction: float) -> dict[str, list[int]]:
    """What a pack of documents by document has to hold, piece by piece."""
    rows: dict[str, list[int]] = {"train": [], "val": []}
    last: tuple[str, int, str] = ("", -1, "")
    for name, text, part in documents:
        follows = part > 0 and last[:2] == (name, part - 1)
        split = last[2] if follows else ("val" if is_held_out(text, fraction) else "train")
        rows[split] += ([] if follows else [0]) + [byte + 1 for byte in text.encode()]
        last = (name, part, split)
    return rows


@st.composite
def corpora(draw: st.DrawFn) -> list[Document]:
    documents = []
    for i in range(draw(st.integers(1, 12))):
        for part in range(draw(st.integers(1, 3))):
            if not draw(st.integers(0, 9)):  # a part that could not be read
                continue
            documents.append(Document(f"d{i // 2}", draw(st.text(max_size=40)), part))
    return documents


@settings(deadline=None, max_examples=50)
@given(
    corpora(),
    st.integers(1, 60),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.3]),
    st.integers(1, 200),
)
def test_batches_and_shards_cut_one_row(documents, shard_size, batch, fraction, journal_tokens):
    expected = slowly(documents, fraction)
    documents = [
        Document("first", "kept to train on", 0),
        *documents,
    ]  # else there may be nothing to train on
    while is_held_out(documents[0].text, fraction):
        documents[0] = documents[0]._replace(text=documents[0].text + "!")
    expected["train"] = [0, *(byte + 1 for byte in documents[0].text.encode()), *expected["train"]]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "BATCH_DOCUMENTS", batch)
        patch.setattr(writer, "JOURNAL_TOKENS", journal_tokens)
        patch.setattr(os, "fsync", lambda file: None)  # takes most of the time and changes no byte
        info = pack(Path(folder) / "p", documents, shard_size=shard_size, val_fraction=fraction)
        opened = packs.open_pack(Path(folder) / "p", verify=True)
        for split, row in expected.items():
            assert info.splits[split].documents == row.count(0)
            assert info.splits[split].num_bytes == len(row) - row.count(0)
            assert (take(opened, split, 0, len(row)).tolist() if row else []) == row
            assert all(len(shard) == shard_size for shard in opened.shards[split][:-1])


def test_workers_change_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer) -> None:
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 3)
    documents = [Document(f"d{i // 3}", f"text {i}\n" * (i % 9), i % 3) for i in range(100)]
    for workers in (0, 2):
        build_pack(
            documents,
            tokenizer.encode_flat,
            tmp_path / str(workers),
            workers=workers,
            eos=0,
            seq_len=8,
            shard_size=90,
            json="",
            fingerprint="",
            vocab_size=tokenizer.vocab_size,
            val_fraction=0.3,
            split_by="block",
        )
    assert contents(tmp_path / "0") == contents(tmp_path / "2")


class Stopped(BaseException):
    """Ctrl+C, as it were."""


def stopping(documents: list[Document], at: int) -> Iterator[Document]:
    yield from documents[:at]
    raise Stopped


def lines(num: int) -> list[Document]:
    return [
        Document(f"d{i // 2}", f"line {i} of a corpus\n" * (1 + i % 5), i % 2) for i in range(num)
    ]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BATCH_DOCUMENTS", 3)  # cuts between the two parts of a document
    monkeypatch.setattr(writer, "JOURNAL_TOKENS", 150)
    monkeypatch.setattr(os, "fsync", lambda file: None)


@pytest.mark.parametrize("held", [{}, {"split_by": "block"}, {"val_names": ("d2",)}])
def test_a_stopped_packer_goes_on_where_it_was(tmp_path: Path, small_steps, held) -> None:
    documents = lines(80)
    told = {"val_fraction": 0.4, "inputs": "lines", **held}
    pack(tmp_path / "whole", documents, **told)
    steps: list[writer.PackProgress] = []
    for at in (13, 14, 60):
        with pytest.raises(Stopped):
            pack(tmp_path / "p", stopping(documents, at), **told)
        assert not (tmp_path / "p").exists()
        assert (tmp_path / ".p.unfinished").is_dir()
    pack(tmp_path / "p", documents, **told, progress=steps.append)
    assert steps[0].num_chunks > 40, "it began anew"
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "whole"]


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": "others"},
        {"shard_size": 90},
        {"val_fraction": 0.1},
        {"fingerprint": "g"},
        {"inputs": ""},
    ],
)
def test_another_job_begins_anew(tmp_path: Path, small_steps, change) -> None:
    documents, told = lines(80), {"val_fraction": 0.4, "inputs": "lines"}
    with pytest.raises(Stopped):
        pack(tmp_path / "p", stopping(documents, 60), **told)
    steps: list[writer.PackProgress] = []
    pack(tmp_path / "p", documents, **told | change, progress=steps.append)
    assert steps[0].num_chunks == 3
    pack(tmp_path / "whole", documents, **told | change)
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


@pytest.mark.parametrize("when", range(3, 24, 5))
def test_after_a_full_disk_it_goes_on_where_it_was(
    tmp_path: Path, small_steps, monkeypatch, when
) -> None:
    documents, real, calls = lines(80), shards.ShardWriter.append, []

    def append(
        shard_writer: shards.ShardWriter, ids: np.ndarray, documents: int, num_bytes: int
    ) -> None:
        calls.append(len(ids))
        if len(calls) == when:  # half of it is written
            real(shard_writer, ids[: len(ids) // 2], documents, num_bytes)
            raise OSError(28, "No space left on device")
        real(shard_writer, ids, documents, num_bytes)

    monkeypatch.setattr(shards.ShardWriter, "append", append)
    told = {"val_fraction": 0.4, "inputs": "lines"}
    with pytest.raises(OSError, match="No space left"):
        pack(tmp_path / "p", documents, **told)
    monkeypatch.undo()
    pack(tmp_path / "p", documents, **told)
    pack(tmp_path / "whole", documents, **told)
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


@pytest.mark.parametrize("harm", ["shard", "journal"])
def test_a_harmed_working_folder_is_not_gone_on_with(tmp_path: Path, small_steps, harm) -> None:
    documents = lines(80)
    with pytest.raises(Stopped):
        pack(tmp_path / "p", stopping(documents, 60), inputs="lines")
    work = tmp_path / ".p.unfinished"
    if harm == "shard":
        (work / "new" / "train" / "shard_00000.bin").unlink()
    else:
        (work / "journal.json").write_text('{"pieces": 40')
    steps: list[writer.PackProgress] = []
    pack(tmp_path / "p", documents, inputs="lines", progress=steps.append)
    assert steps[0].num_chunks == 3
    pack(tmp_path / "whole", documents)
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")


KILLED = """
import sys, time
from slm_fn.data.io import documents as sources
from slm_fn.data.pack import encode
from slm_fn.data.pack import writer
from slm_fn.data.pack import build
from slm_fn.text.tokenizer import Tokenizer
corpus, tokenizer_file, out = sys.argv[1:]
tokenizer = Tokenizer.load(tokenizer_file)
tokenizer.encoder_backend
encode.BATCH_DOCUMENTS, writer.JOURNAL_TOKENS = 25, 3000
told = []
def progress(now):
    if not told:
        print("from", now.num_chunks, flush=True)
    told.append(now)
    time.sleep(0.003)
print("ready", flush=True)
build.pack(
    sources.read([corpus]),
    build.PackTokenizer(tokenizer.encode_flat, tokenizer.vocab_size, 0, "{}", "f"),
    build.PackSettings(seq_len=16, shard_size=2000, val_fraction=0.2),
    out,
    inputs="corpus",
    progress=progress,
)
print("done", flush=True)
"""


def run(args: list[str], seconds: float | None) -> list[str]:
    """What the packer said, killed so many seconds after it was ready."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *args], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return process.stdout.read().splitlines()


def killed_often(tmp_path: Path, tokenizer, kills: int) -> None:
    rows = [
        {"text": f"Line {i} of the corpus: {'and so on ' * (i % 40)}\nends."} for i in range(1200)
    ]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer.save(tmp_path / "tokenizer.json")
    inputs = [str(tmp_path / "corpus.jsonl"), str(tmp_path / "tokenizer.json")]
    assert run([*inputs, str(tmp_path / "whole")], None)[-1] == "done"
    chance, began_at, killed = random.Random(kills), [], 0
    out = str(tmp_path / "p")
    while killed < kills:
        said = run([*inputs, out], chance.uniform(0.0, 0.5))
        began_at += [int(line.split()[1]) for line in said if line.startswith("from")]
        if said[-1:] == ["done"]:
            assert contents(Path(out)) == contents(tmp_path / "whole")
            shutil.rmtree(out)
        else:
            killed += 1
            assert not Path(out).exists() or contents(Path(out)) == contents(tmp_path / "whole")
    assert max(began_at) > 100, "no run went on where another was killed"
    run([*inputs, out], None)
    assert contents(Path(out)) == contents(tmp_path / "whole")
    assert not (tmp_path / ".p.unfinished").exists()


def test_killed_three_times(tmp_path: Path, tokenizer) -> None:
    killed_often(tmp_path, tokenizer, 3)


@pytest.mark.slow
def test_killed_ten_times(tmp_path: Path, tokenizer) -> None:
    killed_often(tmp_path, tokenizer, 10)


def test_killed_between_the_renames_the_old_pack_comes_back_or_the_new_one_is_there(
    tmp_path: Path,
) -> None:
    code = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
from test_writer import lines, pack
real, calls = os.replace, []
def dies(source, target):
    if Path(source).name == "new":
        os.kill(os.getpid(), 9)
    real(source, target)
os.replace = dies
pack(Path(sys.argv[1]), lines(int(sys.argv[2])), inputs=sys.argv[2])
"""
    out = tmp_path / "p"
    pack(out, lines(10), inputs="10")
    before = contents(out)
    done = subprocess.run([sys.executable, "-c", code, str(out), "20", *FOLDERS], check=False)
    assert done.returncode == -9
    assert not out.exists(), "it was to die between the two renames"
    with pytest.raises(ValueError, match="nothing to pack"):
        pack(out, [], inputs="none")
    assert contents(out) == before
    subprocess.run([sys.executable, "-c", code, str(out), "20", *FOLDERS], check=False)
    pack(out, lines(20), inputs="20")
    pack(tmp_path / "whole", lines(20))
    assert contents(out) == contents(tmp_path / "whole")


def test_two_packers_of_one_place_are_told(tmp_path: Path) -> None:
    def documents() -> Iterator[Document]:
        yield from lines(10)
        with pytest.raises(ValueError, match="another process is writing there"):
            pack(tmp_path / "p", lines(10))
        yield from lines(20)[10:]

    pack(tmp_path / "p", documents())
    pack(tmp_path / "whole", lines(20))
    assert contents(tmp_path / "p") == contents(tmp_path / "whole")
