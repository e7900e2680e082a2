"""Listing: sorted, hidden files ignored, links followed once, nothing silently missing."""

import inspect
import os
import sys
from pathlib import Path

import pytest

from slm_fn.data.io import folders


def test_files_are_sorted_and_hidden_ones_ignored(tmp_path: Path) -> None:
    for name in (
        "b.txt",
        "a/z.md",
        "a/y.jsonl.zst",
        "a-b.parquet",
        ".c.txt",
        ".d/e.txt",
        "f.png",
        "g.txt~",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = folders.list_files(tmp_path, pytest.fail)
    assert [f.relative_to(tmp_path).as_posix() for f in found] == [
        "a-b.parquet",
        "a/y.jsonl.zst",
        "a/z.md",
        "b.txt",
    ]
    assert folders.list_files(tmp_path / ".c.txt", pytest.fail) == [tmp_path / ".c.txt"]


def test_links_are_followed_and_each_folder_entered_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.txt").write_text("a")
    for number in range(8):  # without the rule, every order of the links is a path
        (tmp_path / f"in/{number}").symlink_to(tmp_path / "in")
        (tmp_path / f"in/{number}o").symlink_to(tmp_path / "out")
    (found,) = folders.list_files(tmp_path / "in", pytest.fail)
    assert found.resolve() == (tmp_path / "out/a.txt").resolve()


def test_a_tree_may_be_deeper_than_the_recursion_limit(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 250)
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text("a")
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 150)
    try:
        assert folders.list_files(tmp_path, pytest.fail) == [deep / "a.txt"]
    finally:
        sys.setrecursionlimit(limit)


def test_a_pipe_is_reported_and_not_opened(tmp_path: Path) -> None:
    problems: list[str] = []
    os.mkfifo(tmp_path / "p.txt")
    assert folders.list_files(tmp_path / "p.txt", problems.append) == []
    assert folders.list_files(tmp_path, problems.append) == []
    assert problems == [f"{tmp_path}/p.txt: a pipe, socket or device, not a file; left out"] * 2
    (tmp_path / "p.txt").unlink()
    assert folders.list_files(tmp_path, problems.append) == []
    assert (
        problems[2] == f"the corpus is empty: no .txt, .md, .jsonl, .parquet files below {tmp_path}"
    )
    (tmp_path / "a.tar").write_text("")
    with pytest.raises(ValueError, match=r"a\.tar is not one of \.txt"):
        folders.list_files(tmp_path / "a.tar", problems.append)
    with pytest.raises(FileNotFoundError, match="no file or folder at"):
        folders.list_files(tmp_path / "none", problems.append)
