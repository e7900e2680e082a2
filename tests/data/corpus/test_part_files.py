"""A source that is stopped anywhere and run again has the bytes of one that never was."""

import shutil
from functools import cache

import msgspec
import pytest

from slm_fn.data.clean.cleaning import build_rules
from slm_fn.data.clean.minhash import DedupConfig
from slm_fn.data.corpus import duplicates, part_files, source_folder
from slm_fn.data.corpus.clean_worker import CleanWorker, clean_rows
from slm_fn.data.corpus.duplicates import DuplicateIndex
from slm_fn.data.corpus.part_files import PartSettings, SourceLimits
from slm_fn.data.corpus.source_folder import SourceState
from slm_fn.data.corpus.source_rows import SourceRow
from slm_fn.data.io import documents as documents_io
from slm_fn.data.io.documents import Document

NEAR = DedupConfig(num_perm=64)
WORDS = (
    "it was the best of times it was the worst of times "
    "it was the age of wisdom it was the age of foolishness"
)


def documents():
    """Long texts, short ones that rules remove, exact and near duplicates, empty rows, problems."""
    for i in range(60):
        text = f"{i} {WORDS[: 20 + 7 * (i % 11)]} {i * i}"
        rows = {
            3: f"0 {WORDS[:20]} 0",
            5: "x",
            7: f"{7 * (i // 14)} {WORDS} {WORDS} once more.{'!' * (i // 7)}",
        }
        item = None if i % 13 == 6 else Document(f"d{i}", rows.get(i % 14, text))
        yield SourceRow(
            item, problems=(f"problem {i}",) * (i % 9 == 4), dropped=("too odd",) * (i % 10 == 1)
        )


@cache
def pairs(dedup):
    return tuple(
        clean_rows(
            documents(), CleanWorker(build_rules([{"length": {"least": 5}}]), (), dedup, NEAR)
        )
    )


class Stopped(Exception):
    """Raised by a source before its end."""


LIMITS = SourceLimits()


def run(
    folder,
    dedup="near",
    limits=LIMITS,
    block_bytes=400,
    stop=None,
    others=(),
    on_problem=lambda line: None,
):
    """Resume as a new process would; with `stop`, the source breaks after so many rows."""
    loaded = source_folder.load(folder)
    state = loaded or SourceState({"a": 1}, {})
    index = DuplicateIndex(NEAR)
    index.extend([*others, folder])

    def stream(done):
        for i, pair in enumerate(pairs(dedup)):
            if stop is not None and i == done + stop:
                raise Stopped
            if i >= done:
                yield pair

    settings = PartSettings(".jsonl", limits, block_bytes, on_problem, lambda counts: None)
    return part_files.write_parts(folder, state, stream, index, settings)


def tree(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows_of(folder):
    return [
        msgspec.json.decode(line)
        for file in sorted(folder.glob("*.jsonl"))
        for line in file.read_bytes().splitlines()
    ]


def test_counts_add_up_and_are_those_of_the_files(tmp_path):
    problems = []
    done = run(tmp_path / "a", on_problem=problems.append)
    counts, written = done.counts, rows_of(tmp_path / "a")
    assert (
        counts.read
        == counts.kept + sum(counts.removed.values())
        == sum(row.item is not None for row in documents())
    )
    assert set(counts.removed) == {"length", duplicates.EXACT, duplicates.NEAR}
    assert min(counts.removed.values()) > 1
    assert counts.kept == len(written) == sum(part.documents for part in done.parts)
    assert counts.bytes_kept == sum(len(row["text"].encode()) for row in written)
    assert (counts.problems, counts.dropped) == (len(problems), {"too odd": 6})
    assert problems == [problem for row in documents() for problem in row.problems]
    assert done.rows == 60
    assert len(done.parts) > 4
    for part in done.parts:
        assert (tmp_path / "a" / part.file).stat().st_size == part.bytes


@pytest.mark.parametrize(("dedup", "every"), [("none", 7), ("exact", 7), ("near", 1), ("near", 23)])
def test_a_source_that_breaks_again_and_again_ends_the_same(tmp_path, dedup, every):
    full = run(tmp_path / "full", dedup)
    # A run only advances past a complete block: give it as many rows as the largest block has.
    largest = 14
    for attempt in range(100):
        try:
            done = run(tmp_path / "broken", dedup, stop=largest + every * attempt % 5)
            break
        except Stopped:
            continue
    assert attempt > 1
    assert done == full
    assert tree(tmp_path / "broken") == tree(tmp_path / "full")


def test_a_kill_between_any_two_writes_changes_nothing(tmp_path):
    """After any number of blocks: the next part file, with or without its digests."""
    run(tmp_path / "full")
    full, tried = tree(tmp_path / "full"), 0
    for stop in range(0, 60, 8):
        before = tmp_path / f"before-{stop}"
        with pytest.raises(Stopped):
            run(before, stop=stop)
        state = msgspec.json.decode((before / source_folder.STATE).read_bytes(), type=SourceState)
        ahead = f"part_{len(state.parts):05d}"
        for left in ([".jsonl"], [".jsonl", duplicates.DIGESTS]):
            killed = shutil.copytree(before, tmp_path / f"killed-{stop}-{len(left)}")
            for ending in left:
                if ahead + ending in full:
                    tried += 1
                    (killed / (ahead + ending)).write_bytes(full[ahead + ending])
            (killed / ".tmp-12345678-part_00001.jsonl").write_bytes(b"{half")
            run(killed)
            assert tree(killed) == full
    assert tried > 12


@pytest.mark.parametrize("most", [1, 5, 10, 1000])
def test_a_limit_of_documents_ends_the_source_and_reads_no_further_row(tmp_path, most):
    full = rows_of_all(tmp_path)
    done = run(tmp_path / "a", limits=SourceLimits(documents=most))
    assert rows_of(tmp_path / "a") == full[:most]
    assert done.limit_reached == (most < len(full))
    if done.limit_reached:
        again = run(tmp_path / "a", limits=SourceLimits(documents=most), stop=0)
        assert again == done, "no row is read"


@pytest.mark.parametrize("most", [1, 50, 51, 52, 300, 10**6])
def test_a_limit_of_bytes_is_never_exceeded(tmp_path, most):
    full = rows_of_all(tmp_path)
    done = run(tmp_path / "a", limits=SourceLimits(bytes=most))
    written = rows_of(tmp_path / "a")
    assert done.counts.bytes_kept <= most
    assert written == full[: len(written)]
    assert done.limit_reached == (most < 10**6)


def rows_of_all(tmp_path):
    run(tmp_path / "all")
    return rows_of(tmp_path / "all")


def test_duplicates_across_sources_are_found_from_the_files(tmp_path):
    first = run(tmp_path / "first")
    second = run(tmp_path / "second", others=[tmp_path / "first"])
    assert second.counts.kept == 0
    assert second.counts.removed[duplicates.EXACT] >= first.counts.kept
    assert second.parts == (), "a block that leaves nothing is no file"
    exact = run(tmp_path / "third", "exact", others=[tmp_path / "first"])
    assert exact.counts.removed[duplicates.EXACT] >= first.counts.kept
    assert (
        run(tmp_path / "fourth", "none", others=[tmp_path / "first"]).counts.kept
        > first.counts.kept
    )


def test_a_finished_source_has_no_journal(tmp_path):
    folder = tmp_path / "a"
    done = run(folder)
    metadata = source_folder.SourceMetadata(
        name="a",
        digest="d",
        settings=done.settings,
        source={},
        counts=done.counts,
        tokens_estimated=1,
        parts=done.parts,
        versions={},
    )
    journal = (folder / source_folder.STATE).read_bytes()
    source_folder.finish(folder, metadata)
    assert not (folder / source_folder.STATE).exists()
    (folder / source_folder.STATE).write_bytes(journal)  # killed between the two
    assert source_folder.load(folder) == metadata
    assert not (folder / source_folder.STATE).exists()


def test_a_folder_with_other_files_is_not_changed(tmp_path):
    (tmp_path / "a").mkdir()
    assert source_folder.load(tmp_path / "a") is None
    (tmp_path / "a" / "novel.txt").write_text("mine")
    with pytest.raises(ValueError, match="no prepared source; choose another --out"):
        source_folder.load(tmp_path / "a")
    run(tmp_path / "b")
    (tmp_path / "b" / source_folder.STATE).write_bytes(b'{"settings": {}, "rows"')
    with pytest.raises(ValueError, match=r"cannot be decoded: .*; remove the folder"):
        source_folder.load(tmp_path / "b")


def test_a_removed_folder_is_gone(tmp_path):
    run(tmp_path / "a")
    source_folder.remove(tmp_path / "a")
    source_folder.remove(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_part_files_read_as_text_and_those_of_conversations_are_skipped(tmp_path):
    run(tmp_path / "a")
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "part_00000.chat.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "talk" / "part_00000.pairs.jsonl").write_text('{"prompt": "a"}\n')
    assert [document.text for document in documents_io.read([tmp_path])] == [
        row["text"] for row in rows_of(tmp_path / "a")
    ]
    with pytest.raises(ValueError, match="text"):
        list(documents_io.read([tmp_path / "talk" / "part_00000.chat.jsonl"]))
