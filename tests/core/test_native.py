"""C++ libraries: compiled once, cached where no other user can write, else a stated reason."""

import ctypes
import os
import subprocess
import sys

import pytest

from slm_fn.core import native

TWICE = """#include <omp.h>
extern "C" int twice(int x) {
#pragma omp parallel
  {}
  return 2 * x;
}
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "twice.cpp"
    file.write_text(TWICE)
    native.load.cache_clear()
    yield file
    native.load.cache_clear()


def test_compiled_once_and_loaded_again(source, monkeypatch):
    assert native.load(source).twice(21) == 42
    assert len(list((source.parent / "cache" / "slm_fn").glob("*.so"))) == 1
    native.load.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *args, **kwargs: pytest.fail("compiled twice"))
    assert native.load(source).twice(4) == 8
    assert isinstance(native.load(source), ctypes.CDLL)


def test_another_source_is_another_library(source):
    assert native.load(source).twice(1) == 2
    source.write_text(TWICE.replace("2 * x", "3 * x"))
    native.load.cache_clear()
    assert native.load(source).twice(1) == 3


def test_another_processor_of_the_same_name_has_a_library_of_its_own(source, monkeypatch):
    native.load(source)
    monkeypatch.setattr(native.host, "cpu_flags", lambda: "sse2")
    native.load.cache_clear()
    native.load(source)
    assert len(list((source.parent / "cache" / "slm_fn").glob("*.so"))) == 2


def test_a_source_that_does_not_compile_is_reported(source):
    source.write_text("this is no C++")
    with pytest.raises(native.Unavailable, match=r"cannot compile twice\.cpp"):
        native.load(source)


def test_a_missing_compiler_is_reported(source, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(native.Unavailable, match="compiler"):
        native.load(source)


@pytest.mark.parametrize("compiler", ['g++ "', "/no/such/compiler", "false", "true"])
def test_a_broken_compiler_is_reported(source, monkeypatch, compiler):
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(native.Unavailable, match="compile"):
        native.load(source)


def test_a_missing_home_folder_is_reported(source, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", nowhere)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    with pytest.raises(native.Unavailable, match="home directory"):
        native.load(source)
    assert not (source.parent / "relative").exists()


@pytest.mark.slow
def test_two_processes_that_compile_at_once_both_have_it(source):
    program = "import sys; from pathlib import Path; from slm_fn.core import native; "
    program += "print(native.load(Path(sys.argv[1])).twice(21))"
    both = [
        subprocess.Popen([sys.executable, "-c", program, source], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [b"42\n"] * 2


def test_a_cache_that_others_can_write_to_is_not_used(source):
    folder = source.parent / "cache" / "slm_fn"
    folder.mkdir(parents=True)
    os.chmod(folder, 0o777)
    with pytest.raises(native.Unavailable, match="others may write"):
        native.load(source)
