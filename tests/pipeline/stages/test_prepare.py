"""pipeline/prepare.py.

Every source to its folder, once; what failed or changed is told and nothing else stops.
"""

import gzip
import random
import shutil

import msgspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from slm_fn import config as configs
from slm_fn.config import CorpusConfig
from slm_fn.core import files
from slm_fn.data.chat import records
from slm_fn.data.corpus import duplicates, source_folder
from slm_fn.data.io import documents
from slm_fn.pipeline.stages.prepare import PrepareDisplay, prepare

WORDS = [f"w{i:03d}" for i in range(400)]


def text(seed, words=60):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def lines(path, rows):
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder of text, gzipped JSONL, parquet and chat, with duplicates within and across."""
    root = tmp_path_factory.mktemp("inputs")
    (root / "books").mkdir()
    for i in range(12):
        (root / "books" / f"{i}.txt").write_text(f"{text(i % 10)}\r\nThe end.\n")
    web = []
    for i in range(40):
        host = "bad" if i % 10 == 3 else "good"
        web.append({"text": f"{text(100 + i % 30)} page", "url": f"https://{host}.example/{i}"})
    lines(root / "web.jsonl.gz", [*web, {"text": "tiny"}, {"txt": "odd"}])
    table = pa.table(
        {
            "title": ["a", "b", None],
            "text": [text(100) + " page", text(7) + " \nThe end.", "x" * 80],
        }
    )
    pyarrow.parquet.write_table(table, root / "wiki.parquet")
    said = [[text(200 + i, 5), text(300 + i, 5)] for i in range(8)] + [["unanswered"]]
    roles = ("user", "assistant")
    talk = [
        {"messages": [{"role": r, "content": c} for r, c in zip(roles, row, strict=False)]}
        for row in said
    ]
    lines(root / "chat.jsonl", [*talk, talk[0]])
    return root


@pytest.fixture
def config(inputs):
    told = {
        "part_bytes": 2000,
        "dedup": "near",
        "near": {"num_perm": 64},
        "clean": [{"length": {"least": 20}}],
        "sources": {
            "books": {"path": str(inputs / "books")},
            "web": {
                "path": str(inputs / "web.jsonl.gz"),
                "clean_url": [{"hosts": {"names": ["bad.example"]}}],
            },
            "wiki": {"path": str(inputs / "wiki.parquet"), "columns": ["title", "text"]},
            "chat": {"path": str(inputs / "chat.jsonl"), "kind": "chat"},
        },
    }
    return configs.convert(told, "", CorpusConfig)


def changed(config, name, **told):
    source = msgspec.structs.replace(config.sources[name], **told)
    return msgspec.structs.replace(config, sources={**config.sources, name: source})


def run(config, out, **told):
    said = []
    return prepare(config, out, PrepareDisplay(said.append), **told), said


def tree(out):
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file()
    }


def test_every_source_is_read_cleaned_and_counted(config, tmp_path):
    report, said = run(config, tmp_path)
    assert not report.failed
    counts = {row.name: row.counts for row in report.sources}
    for name, found in counts.items():
        metadata = msgspec.json.decode(
            (tmp_path / name / source_folder.METADATA).read_bytes(),
            type=source_folder.SourceMetadata,
        )
        assert metadata.counts == found
        assert found.read == found.kept + sum(found.removed.values())
    assert (counts["books"].read, counts["books"].kept) == (12, 10)
    assert counts["books"].changed == 10, "newlines of Windows become plain ones"
    assert counts["web"].removed == {"hosts": 4, "length": 1, duplicates.EXACT: 9}
    assert counts["web"].problems == 1
    assert (counts["chat"].kept, counts["chat"].dropped) == (
        8,
        {"no reply of the assistant's to a user": 1},
    )
    assert [line for line in said if "web.jsonl.gz, row 42" in line]
    texts = [document.text for document in documents.read([tmp_path])]
    assert len(texts) == sum(found.kept for name, found in counts.items() if name != "chat")
    assert not any("\r" in text for text in texts)
    assert len(list(records.read_chat([tmp_path / "chat"]))) == 8


def test_near_duplicates_are_told_over_sources(config, tmp_path):
    report, _ = run(config, tmp_path)
    assert report.sources[2].counts.removed == {duplicates.NEAR: 2}, (
        "a page and a book, each under a title"
    )
    apart, _ = run(changed(config, "wiki", dedup="none"), tmp_path / "apart")
    assert apart.sources[2].counts.removed == {}


def test_workers_change_no_byte(config, tmp_path):
    run(config, tmp_path / "one")
    run(config, tmp_path / "two", workers=1)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_what_is_finished_is_skipped(config, tmp_path):
    first, _ = run(config, tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    again, said = run(config, tmp_path)
    assert [row.status for row in again.sources] == ["skipped"] * 4
    assert [row.counts for row in again.sources] == [row.counts for row in first.sources]
    assert said[0] == "books: finished before, 10 documents; skipped"
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == before


def test_other_settings_are_refused_before_anything_is_done_and_force_begins_anew(config, tmp_path):
    run(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "books")
    other = changed(config, "web", max_documents=3, lowercase=True)
    with pytest.raises(
        ValueError, match=r"source 'web'.*other settings \(lowercase, max_documents\).*--force"
    ):
        run(other, tmp_path / "out")
    assert not (tmp_path / "out" / "books").exists()
    report, said = run(other, tmp_path / "out", force=True)
    assert "web: started anew" in said[0]
    assert {row.name: row.status for row in report.sources} == {
        "books": "done", "web": "done", "wiki": "skipped", "chat": "skipped"
    }  # fmt: skip
    assert report.sources[1].counts.kept == 3


def test_other_files_are_refused(config, tmp_path, inputs):
    books = shutil.copytree(inputs / "books", tmp_path / "books")
    config = changed(config, "books", path=str(books))
    run(config, tmp_path / "out")
    (books / "12.txt").write_text(text(12))
    with pytest.raises(ValueError, match=r"source 'books'.*\(the files themselves\)"):
        run(config, tmp_path / "out")
    report, _ = run(config, tmp_path / "out", force=True)
    assert report.sources[0].counts.read == 13


def test_a_source_that_fails_stops_no_other(config, tmp_path):
    run(config, tmp_path / "whole")
    broken = changed(config, "web", path=str(tmp_path / "nowhere"))
    report, said = run(broken, tmp_path / "out")
    assert [row.status for row in report.sources] == ["done", "failed", "done", "done"]
    assert report.failed == ["web"]
    line = next(line for line in said if line.startswith("web: failed"))
    assert "no file or folder at" in line
    assert "\n" not in line
    again, _ = run(config, tmp_path / "out")
    assert [row.status for row in again.sources] == ["skipped", "done", "skipped", "skipped"]


def test_what_a_failed_source_did_not_write_is_no_duplicate_of_others(config, tmp_path):
    """The second file of a data set cannot be read.

    The first's rows are in no part, another source may keep them.
    """
    lines(tmp_path / "good.jsonl", [{"text": text(i, 9)} for i in range(700)])
    (tmp_path / "bad.jsonl").write_text("{nothing")
    both = [str(tmp_path / name) for name in ("good.jsonl", "bad.jsonl")]
    told = {"half": {"hub": "json", "data_files": both}, "again": {"path": both[0]}}
    report, said = run(configs.convert({"sources": told}, "", CorpusConfig), tmp_path / "out")
    assert report.failed == ["half"]
    assert said[0].startswith("half: failed: json: ")
    assert report.sources[1].counts.kept == 700


def test_a_source_of_the_hub_goes_on_where_it_failed(tmp_path):
    """The second file cannot be read, then the third.

    What was kept before stays, and is not read again.
    """
    files = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for i, file in enumerate(files):
        lines(file, [{"text": f"{i} {j} {WORDS[j % 400]}"} for j in range(1600)])
    good = [file.read_bytes() for file in files]
    told = {"hub": "json", "data_files": [str(file) for file in files]}
    config = configs.convert({"part_bytes": 3000, "sources": {"set": told}}, "", CorpusConfig)
    run(config, tmp_path / "whole")
    for i in (1, 2):
        files[i].write_text("{nothing")
    for i, place in ((1, 1000), (2, 2000)):
        report, _ = run(config, tmp_path / "out")
        assert report.failed == ["set"]
        state = msgspec.json.decode(
            (tmp_path / "out" / "set" / source_folder.STATE).read_bytes(),
            type=source_folder.SourceState,
        )
        assert state.rows > 1000 * i
        assert state.cursor.row == place
        files[i].write_bytes(good[i])
    files[0].write_bytes(good[0].replace(b"0 1 w001", b"0 1 read again"))
    report, said = run(config, tmp_path / "out")
    assert report.sources[0].status == "done"
    assert said[0].startswith("set: resuming after row 2,")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_what_is_broken_is_told_in_a_line_each_and_the_rest_is_kept(tmp_path):
    broken = tmp_path / "in"
    broken.mkdir()
    (broken / "a.txt").write_text(text(0))
    (broken / "b.txt").write_bytes(b"caf\xe9")
    (broken / "c.md").write_bytes(b"")
    (broken / "d.txt").write_text("null\0null " + text(1))
    rows = [{"text": text(i)} for i in range(10, 60)]
    lines(broken / "e.jsonl", [*rows[:10], ["no object"], *rows[10:20], {"text": 3}])
    lines(broken / "f.jsonl.gz", rows[20:40])
    (broken / "f.jsonl.gz").write_bytes((broken / "f.jsonl.gz").read_bytes()[:-400])
    pyarrow.parquet.write_table(
        pa.table({"text": [row["text"] for row in rows[40:]]}), broken / "g.parquet"
    )
    (broken / "g.parquet").write_bytes((broken / "g.parquet").read_bytes()[:-30])
    (broken / "h.jsonl").write_bytes(b'{"text": "half a pair \\ud800"}\n')
    config = configs.convert({"sources": {"all": {"path": str(broken)}}}, "", CorpusConfig)
    report, said = run(config, tmp_path / "out")
    assert report.sources[0].status == "done"
    for name in (
        "b.txt",
        "c.md",
        "e.jsonl, line 11",
        "e.jsonl, line 22",
        "f.jsonl.gz",
        "g.parquet",
        "h.jsonl",
    ):
        assert sum(name in line for line in said) == 1, said
    assert not any("\n" in line for line in said)
    assert len(said) == report.sources[0].counts.problems
    kept = [document.text for document in documents.read([tmp_path / "out"])]
    assert kept[:3] == [text(0), "caf", "nullnull " + text(1)]
    assert kept[3:23] == [row["text"] for row in rows[:20]]
    assert 0 < len(kept[23:]) < 20
    again, _ = run(config, tmp_path / "out")
    assert again.sources[0].counts == report.sources[0].counts


def test_sources_that_the_config_no_longer_has_are_told(config, tmp_path):
    run(config, tmp_path)
    _, said = run(changed(config, "wiki", enabled=False), tmp_path)
    assert [line for line in said if line.startswith(str(tmp_path / "wiki"))]
    assert len(said) == 4


def test_two_at_a_time_in_one_folder_are_refused(config, tmp_path):
    with (
        files.exclusive_lock(tmp_path / ".lock"),
        pytest.raises(ValueError, match="another process is writing there"),
    ):
        run(config, tmp_path)
    assert not run(config, tmp_path)[0].failed


def test_tokens_are_bytes_and_limit_the_source(config, tmp_path):
    report, _ = run(changed(config, "books", max_tokens=200), tmp_path)
    found = report.sources[0]
    assert found.counts.bytes_kept <= 800 < found.counts.bytes_kept + 320
    assert found.tokens_estimated == round(found.counts.bytes_kept / 4)


def test_rules_that_do_not_exist_are_refused_at_once(config, tmp_path):
    with pytest.raises(ValueError, match=r"source 'books': .*did you mean 'length'"):
        run(changed(config, "books", clean=("lenght",)), tmp_path / "out")
    assert not (tmp_path / "out").exists()
