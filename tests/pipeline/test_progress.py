"""pipeline/progress.py.

Shares of the input bytes grow, exact at the end of a file, at most the total.
"""

import pytest

from slm_fn.data.io import documents as sources
from slm_fn.data.io.documents import Document
from slm_fn.pipeline import progress
from slm_fn.pipeline.progress import InputFile, InputProgress


def test_shares_grow_and_are_exact_at_the_end_of_each_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 50)
    (tmp_path / "b.txt").write_text("two " * 100)
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n' * 50)
    named = sources.list_named_files([tmp_path])
    sizes = [(tmp_path / name).stat().st_size for name, _ in named]
    meter = InputProgress(
        [InputFile(name, size) for (name, _), size in zip(named, sizes, strict=True)]
    )
    seen = [(document.name, meter.done) for document in meter.watch(sources.read([tmp_path]))]
    done = [number for _, number in seen]
    assert done == sorted(done)
    assert done[-1] <= meter.total == sum(sizes)
    at_b = next(number for name, number in seen if name == "b.txt")
    assert at_b == sizes[0] + sizes[1]
    assert dict(seen)["c.jsonl:50"] > 0.9 * meter.total, (
        "the second JSONL file is estimated by the first"
    )


def test_compressed_files_are_estimated_and_never_pass_their_size():
    meter = InputProgress([InputFile("a.txt.gz", 100), InputFile("b.txt", 100)])
    parts = [Document("a.txt.gz", "x" * 100, part) for part in range(9)]
    assert [meter.done for _ in meter.watch(parts)] == [35, 70, 100, 100, 100, 100, 100, 100, 100]


def test_files_without_documents_and_names_that_begin_alike_are_told_apart():
    meter = InputProgress(
        [
            InputFile("a", 5),
            InputFile("a.txt", 10),
            InputFile("a.txt2", 10),
            InputFile("z.jsonl", 50),
        ]
    )
    documents = [
        Document("a.txt", "x" * 10),
        Document("z.jsonl:1", "y"),
        Document("elsewhere", "w"),
    ]
    assert [meter.done for _ in meter.watch(documents)] == [15, 26, 27]


def test_plain_lines_come_every_so_often_and_notes_at_once(capsys):
    with progress.show_progress("pack", 2_000_000_000, live=False, seconds=0.0) as display:
        display.update(0, "nothing yet")
        display.update(500_000_000, "7 documents")
        display.note("a note")
    with progress.show_progress("pack", 100, live=False, seconds=60.0) as display:
        display.update(50, "too early")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("pack: 25.0% of 2.00 GB, 7 documents, 0:00:0")
    assert lines[1:] == ["a note"]


def test_of_many_lines_the_first_are_said_and_the_others_counted_even_after_an_error():
    said = []

    def broken():
        with progress.limit_notes(said.append) as problem:
            for number in range(progress.MAX_NOTES + 7):
                problem(f"line {number}")
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert said == [
        *(f"line {number}" for number in range(progress.MAX_NOTES)),
        "and 7 more like these",
    ]
    with progress.limit_notes(said.append) as problem:
        problem("alone")
    assert said[-1] == "alone"


def test_a_stream_whose_end_nobody_knows_has_no_share(capsys):
    for live in (False, True):
        with progress.show_progress("prepare", None, live=live, seconds=0.0) as display:
            display.update(500, "[wiki]: 7 read")
            display.note("a note")
        shown = capsys.readouterr().err
        assert all(part in shown for part in ("prepare", "[wiki]: 7 read", "a note"))
        assert not any(part in shown for part in ("%", "left"))
