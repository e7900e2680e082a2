"""Atomic files and folders: whatever fails, the old one stays complete."""

import hashlib
import os
import subprocess
import sys

import pytest

from slm_fn.core import files


def names(folder):
    return sorted(item.name for item in folder.iterdir())


def test_write_makes_its_folder_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.txt"
    assert files.write(path, "old") == path
    assert files.write(path, b"new \xff") == path
    assert path.read_bytes() == b"new \xff"
    assert names(path.parent) == ["b.txt"]


def test_text_is_written_as_utf8(tmp_path):
    assert files.write(tmp_path / "t", "zażółć\n").read_bytes() == "zażółć\n".encode()


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = files.write(tmp_path / "a", "old")
    with pytest.raises(UnicodeEncodeError):
        files.write(path, "\ud800")  # half a surrogate pair has no UTF-8
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a"]


KILLED_WRITER = """
import os, sys
from slm_fn.core import files
target, when = sys.argv[1:]
real = getattr(os, when)
def dies(*args):
    os.kill(os.getpid(), 9)
setattr(os, when, dies)
files.write(target, "new")
"""


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_writer_killed_before_the_rename_leaves_the_old_file(tmp_path, when):
    path = files.write(tmp_path / "a", "old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(path), when], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"
    left = files.remove_leftovers(tmp_path)
    assert [item.name.startswith(files.TEMPORARY_PREFIX) for item in left] == [True]
    assert names(tmp_path) == ["a"]


def test_folder_appears_whole(tmp_path):
    target = tmp_path / "runs" / "one"
    with files.replace_folder(target) as out:
        (out / "sub").mkdir()
        (out / "sub" / "x").write_text("1")
        assert not target.exists()
    assert (target / "sub" / "x").read_text() == "1"
    assert names(target.parent) == ["one"]


def test_folder_replaces_the_old_one_whole(tmp_path):
    for content in ("old", "new"):
        with files.replace_folder(tmp_path / "one") as out:
            (out / content).write_text(content)
    assert names(tmp_path / "one") == ["new"]
    assert names(tmp_path) == ["one"]


def test_an_error_inside_leaves_the_old_folder(tmp_path):
    with files.replace_folder(tmp_path / "one") as out:
        (out / "old").write_text("old")

    def fails():
        with files.replace_folder(tmp_path / "one") as out:
            (out / "half").write_text("half")
            raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError, match="the disk is full"):
        fails()
    assert names(tmp_path / "one") == ["old"]
    assert names(tmp_path) == ["one"]


def test_a_failed_last_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    with files.replace_folder(tmp_path / "one") as out:
        (out / "old").write_text("old")
    real = os.replace

    def fails_into_place(source, target):
        if target == tmp_path / "one" and "-old-" not in source.name:
            raise OSError("no")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_into_place)
    with pytest.raises(OSError, match="no"), files.replace_folder(tmp_path / "one") as out:
        (out / "new").write_text("new")
    assert names(tmp_path / "one") == ["old"]
    assert names(tmp_path) == ["one"]


def test_sweep_takes_leftovers_and_nothing_else(tmp_path):
    (tmp_path / f"{files.TEMPORARY_PREFIX}1-a").mkdir()
    (tmp_path / f"{files.TEMPORARY_PREFIX}1-a" / "x").write_text("")
    (tmp_path / f"{files.TEMPORARY_PREFIX}2-b").write_text("")
    files.write(tmp_path / "keep", "")
    assert [item.name for item in files.remove_leftovers(tmp_path)] == [".tmp-1-a", ".tmp-2-b"]
    assert names(tmp_path) == ["keep"]


def test_checksum_is_sha256(tmp_path):
    assert files.checksum(files.write(tmp_path / "a", b"abc")) == hashlib.sha256(b"abc").hexdigest()


def test_a_resumable_folder_takes_its_place_and_leaves_nothing_beside(tmp_path):
    for text in ("old", "new"):
        with files.resumable_folder(tmp_path / "a", "job") as work:
            (work / "new" / "t").write_text(text)
            (work / "state").write_text("in between")
        assert (tmp_path / "a" / "t").read_text() == text
        assert names(tmp_path) == ["a"]
        assert names(tmp_path / "a") == ["t"]


@pytest.mark.parametrize(
    ("error", "job", "again", "is_resumed"),
    [
        (OSError, "job", "job", True),
        (KeyboardInterrupt, "job", "job", True),
        (OSError, "job", "other", False),
        (OSError, "job", "", False),
        (OSError, "", "", False),
        (ValueError, "job", "job", False),
    ],
)
def test_the_same_job_resumes_its_folder(tmp_path, error, job, again, is_resumed):
    files.write(tmp_path / "a" / "t", "old")

    def fails():
        with files.resumable_folder(tmp_path / "a", job) as work:
            (work / "new" / "t").write_text("new")
            raise error

    with pytest.raises(error):
        fails()
    assert (tmp_path / "a" / "t").read_text() == "old"
    assert names(tmp_path) == ([".a.unfinished", "a"] if job and error is not ValueError else ["a"])
    with files.resumable_folder(tmp_path / "a", again) as work:
        assert (work / "new" / "t").exists() == is_resumed
        (work / "new" / "u").write_text("more")
    assert names(tmp_path / "a") == (["t", "u"] if is_resumed else ["u"])


def test_one_process_at_a_time_holds_a_resumable_folder(tmp_path):
    code = "import sys; from slm_fn.core import files\n"
    code += "with files.resumable_folder(sys.argv[1], 'job'): pass"
    with files.resumable_folder(tmp_path / "a", "job") as work:
        (work / "new" / "t").write_text("mine")
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, check=False
        )
        assert b"another process is writing there" in done.stderr
        assert (work / "new" / "t").read_text() == "mine"
    assert names(tmp_path) == ["a"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    files.check_replaceable(out, {"a.json"}, "a model")
    out.mkdir()
    (out / "a.json").write_text("{}")
    files.check_replaceable(out, {"a.json"}, "a model")
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(
        ValueError, match=r"holds other files \(thesis.txt\); name a new folder for a"
    ):
        files.check_replaceable(out, {"a.json"}, "a model")
    with pytest.raises(ValueError, match="is a file; a model is a folder"):
        files.check_replaceable(out / "a.json", {"a.json"}, "a model")
