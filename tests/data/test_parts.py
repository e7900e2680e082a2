"""data/parts.py: a source that is stopped anywhere and run again leaves the bytes of one that never was."""

import shutil
from functools import cache

import msgspec
import pytest

from slm_fn.data import parts, sources
from slm_fn.data.clean import build
from slm_fn.data.intake import Row
from slm_fn.data.minhash import DedupConfig
from slm_fn.data.parts import Kept, Limits, State
from slm_fn.data.refine import Refine, refined
from slm_fn.data.sources import Document

NEAR = DedupConfig(num_perm=64)
WORDS = "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness"


def documents():
    """Long ones, short ones that the rules remove, exact and near duplicates, rows that hold nothing, problems."""
    for i in range(60):
        text = f"{i} {WORDS[: 20 + 7 * (i % 11)]} {i * i}"
        rows = {3: f"0 {WORDS[:20]} 0", 5: "x", 7: f"{7 * (i // 14)} {WORDS} {WORDS} once more.{'!' * (i // 7)}"}
        item = None if i % 13 == 6 else Document(f"d{i}", rows.get(i % 14, text))
        yield Row(item, problems=(f"problem {i}",) * (i % 9 == 4), dropped=("too odd",) * (i % 10 == 1))


@cache
def pairs(dedup):
    return tuple(refined(documents(), Refine(build([{"length": {"least": 5}}]), (), dedup, NEAR)))


class Stopped(Exception):
    """What a source does in the middle."""


def run(folder, dedup="near", limits=Limits(), block_bytes=400, stop=None, others=(), tell=lambda line: None):  # noqa: B008
    """Go on in a folder as a new process would; with `stop`, only so many rows come."""
    standing = parts.standing(folder)
    state = standing or State({"a": 1}, {})
    kept = Kept(NEAR)
    kept.extend([*others, folder])

    def stream(done):
        for i, pair in enumerate(pairs(dedup)):
            if stop is not None and i == done + stop:
                raise Stopped
            if i >= done:
                yield pair

    return parts.run(folder, state, ".jsonl", stream, kept, limits, block_bytes, tell, lambda counts: None)


def tree(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def rows_of(folder):
    return [
        msgspec.json.decode(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()
    ]


def test_counts_add_up_and_are_those_of_the_files(tmp_path):
    told = []
    done = run(tmp_path / "a", tell=told.append)
    counts, written = done.counts, rows_of(tmp_path / "a")
    assert counts.read == counts.kept + sum(counts.removed.values()) == sum(row.item is not None for row in documents())
    assert set(counts.removed) == {"length", parts.EXACT, parts.NEAR}
    assert min(counts.removed.values()) > 1
    assert counts.kept == len(written) == sum(part.documents for part in done.parts)
    assert counts.bytes_kept == sum(len(row["text"].encode()) for row in written)
    assert (counts.problems, counts.dropped) == (len(told), {"too odd": 6})
    assert told == [problem for row in documents() for problem in row.problems]
    assert done.rows == 60
    assert len(done.parts) > 4
    for part in done.parts:
        assert (tmp_path / "a" / part.file).stat().st_size == part.bytes


@pytest.mark.parametrize(("dedup", "every"), [("none", 7), ("exact", 7), ("near", 1), ("near", 23)])
def test_a_source_that_breaks_again_and_again_ends_the_same(tmp_path, dedup, every):
    whole = run(tmp_path / "whole", dedup)
    # A row behind the last whole block must come, or no run gets any further: as many rows as the largest block has.
    largest = 14
    for attempt in range(100):
        try:
            done = run(tmp_path / "broken", dedup, stop=largest + every * attempt % 5)
            break
        except Stopped:
            continue
    assert attempt > 1
    assert done == whole
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")


def test_a_kill_between_any_two_writes_is_made_good(tmp_path):
    """After every number of blocks: the next block's part alone, its part and digests, and a half-written file."""
    run(tmp_path / "whole")
    whole, tried = tree(tmp_path / "whole"), 0
    for stop in range(0, 60, 8):
        before = tmp_path / f"before-{stop}"
        with pytest.raises(Stopped):
            run(before, stop=stop)
        state = msgspec.json.decode((before / parts.STATE).read_bytes(), type=State)
        ahead = f"part_{len(state.parts):05d}"
        for left in ([".jsonl"], [".jsonl", parts.DIGESTS]):
            killed = shutil.copytree(before, tmp_path / f"killed-{stop}-{len(left)}")
            for ending in left:
                if ahead + ending in whole:
                    tried += 1
                    (killed / (ahead + ending)).write_bytes(whole[ahead + ending])
            (killed / ".tmp-12345678-part_00001.jsonl").write_bytes(b"{half")
            run(killed)
            assert tree(killed) == whole
    assert tried > 12


@pytest.mark.parametrize("most", [1, 5, 10, 1000])
def test_a_limit_of_documents_ends_the_source_and_takes_no_row_more(tmp_path, most):
    whole = rows_of_all(tmp_path)
    done = run(tmp_path / "a", limits=Limits(documents=most))
    assert rows_of(tmp_path / "a") == whole[:most]
    assert done.full == (most < len(whole))
    if done.full:
        again = run(tmp_path / "a", limits=Limits(documents=most), stop=0)
        assert again == done, "not a row is asked for"


@pytest.mark.parametrize("most", [1, 50, 51, 52, 300, 10**6])
def test_a_limit_of_bytes_is_never_passed(tmp_path, most):
    whole = rows_of_all(tmp_path)
    done = run(tmp_path / "a", limits=Limits(bytes=most))
    written = rows_of(tmp_path / "a")
    assert done.counts.bytes_kept <= most
    assert written == whole[: len(written)]
    assert done.full == (most < 10**6)


def rows_of_all(tmp_path):
    run(tmp_path / "all")
    return rows_of(tmp_path / "all")


def test_duplicates_are_told_over_sources_from_what_lies_on_the_disk(tmp_path):
    first = run(tmp_path / "first")
    second = run(tmp_path / "second", others=[tmp_path / "first"])
    assert second.counts.kept == 0
    assert second.counts.removed[parts.EXACT] >= first.counts.kept
    assert second.parts == (), "a block that leaves nothing is no file"
    exact = run(tmp_path / "third", "exact", others=[tmp_path / "first"])
    assert exact.counts.removed[parts.EXACT] >= first.counts.kept
    assert run(tmp_path / "fourth", "none", others=[tmp_path / "first"]).counts.kept > first.counts.kept


def test_a_finished_source_has_no_journal(tmp_path):
    folder = tmp_path / "a"
    done = run(folder)
    metadata = parts.Metadata(
        name="a", digest="d", settings=done.settings, source={}, counts=done.counts, tokens_estimated=1,
        parts=done.parts, versions={},
    )  # fmt: skip
    journal = (folder / parts.STATE).read_bytes()
    parts.finish(folder, metadata)
    assert not (folder / parts.STATE).exists()
    (folder / parts.STATE).write_bytes(journal)  # killed between the two
    assert parts.standing(folder) == metadata
    assert not (folder / parts.STATE).exists()


def test_a_folder_of_somebody_else_s_is_not_touched(tmp_path):
    (tmp_path / "a").mkdir()
    assert parts.standing(tmp_path / "a") is None
    (tmp_path / "a" / "novel.txt").write_text("mine")
    with pytest.raises(ValueError, match="no prepared source; take another --out"):
        parts.standing(tmp_path / "a")
    run(tmp_path / "b")
    (tmp_path / "b" / parts.STATE).write_bytes(b'{"settings": {}, "rows"')
    with pytest.raises(ValueError, match=r"does not read: .*; remove the folder"):
        parts.standing(tmp_path / "b")


def test_what_is_discarded_is_gone(tmp_path):
    run(tmp_path / "a")
    parts.discard(tmp_path / "a")
    parts.discard(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_parts_read_as_text_and_those_of_conversations_are_passed_over(tmp_path):
    run(tmp_path / "a")
    (tmp_path / "talk").mkdir()
    (tmp_path / "talk" / "part_00000.chat.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "talk" / "part_00000.pairs.jsonl").write_text('{"prompt": "a"}\n')
    assert [document.text for document in sources.read([tmp_path])] == [row["text"] for row in rows_of(tmp_path / "a")]
    with pytest.raises(ValueError, match="text"):
        list(sources.read([tmp_path / "talk" / "part_00000.chat.jsonl"]))
