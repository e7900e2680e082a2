"""`slm data prepare`.

Sources to a tokenizer and a pack; killed and resumed it writes the same bytes.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

COMMAND = [sys.executable, "-m", "slm_fn.cli.main", "data", "prepare"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def slm(*args, **env):
    return subprocess.run(
        [sys.executable, "-m", "slm_fn.cli.main", *map(str, args)],
        capture_output=True,
        env={**ENV, **env},
        timeout=240,
    )


def tree(out):
    return {
        file.relative_to(out).as_posix(): file.read_bytes()
        for file in out.rglob("*")
        if file.is_file()
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three sources of many small files, with duplicates within and across, and a config."""
    root = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = [f"w{i}" for i in range(3000)]
    pages = [" ".join(draw.choices(words, k=draw.randint(20, 200))) for _ in range(900)]
    (root / "books").mkdir()
    for i in range(60):
        (root / "books" / f"{i:02d}.md").write_text("\r\n".join(draw.choices(pages, k=6)))
    lines = [json.dumps({"text": draw.choice(pages)}) + "\n" for _ in range(1200)]
    (root / "web.jsonl").write_text("".join(lines) + "{broken\n")
    conversations = [
        [{"role": "user", "content": page[:40]}, {"role": "assistant", "content": page[40:90]}]
        for page in pages
    ]
    chat = [json.dumps({"messages": messages}) + "\n" for messages in conversations]
    (root / "chat.jsonl").write_text("".join(chat))
    config = {
        "part_bytes": 20_000,
        "dedup": "near",
        "near": {"num_perm": 32},
        "clean": ["word_count"],
        "sources": {
            "books": {"path": "${SLM_TEST_BOOKS:-nowhere}"},
            "web": {"path": str(root / "web.jsonl")},
            "chat": {"path": str(root / "chat.jsonl"), "kind": "chat"},
        },
    }
    (root / "corpus.json").write_text(json.dumps(config))
    return root


def run(corpus, out, *args):
    return slm(
        "data",
        "prepare",
        corpus / "corpus.json",
        "--out",
        out,
        *args,
        SLM_TEST_BOOKS=str(corpus / "books"),
    )


@pytest.fixture(scope="module")
def prepared(corpus, tmp_path_factory):
    """The folder of an uninterrupted run, and its report."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    done = run(corpus, out, "--json")
    assert done.returncode == 0, done.stderr.decode()
    return out, json.loads(done.stdout)


def test_a_prepared_corpus_trains_a_tokenizer_and_packs(prepared, tmp_path):
    out, report = prepared
    assert [row["status"] for row in report["sources"]] == ["done"] * 3
    for row in report["sources"]:
        counts = row["counts"]
        assert counts["read"] == counts["kept"] + sum(counts["removed"].values())
    texts = sum(row["counts"]["kept"] for row in report["sources"][:2])
    done = slm("tokenizer", "train", out, "--out", tmp_path / "t.json", "--vocab-size", "400")
    assert done.returncode == 0, done.stderr.decode()
    done = slm(
        "data",
        "pack",
        "--tokenizer",
        tmp_path / "t.json",
        "--in",
        out,
        "--out",
        tmp_path / "p",
        "--json",
    )
    assert done.returncode == 0, done.stderr.decode()
    packed = json.loads(done.stdout)
    assert sum(split["documents"] for split in packed["splits"].values()) == texts


def test_the_table_names_every_source_and_problems_go_to_standard_error(corpus, prepared, tmp_path):
    done = run(corpus, tmp_path / "out")
    assert done.returncode == 0
    printed, errors = done.stdout.decode(), done.stderr.decode()
    assert all(
        name in printed
        for name in ("books", "web", "chat", "duplicate: exact", "1 could not be read")
    )
    assert "web: " in errors
    assert "line 1201" in errors
    assert tree(tmp_path / "out") == tree(prepared[0])


def test_a_source_that_fails_is_exit_1_and_bad_settings_are_exit_2(corpus, tmp_path):
    out = tmp_path / "out"
    failed = slm("data", "prepare", corpus / "corpus.json", "--out", out, "--json")
    assert failed.returncode == 1, failed.stderr.decode()
    assert json.loads(failed.stdout)["failed"] == ["books"]
    assert [line for line in failed.stderr.decode().splitlines() if line.startswith("slm:")]
    done = run(corpus, out, "--set", "sources.web.max_documents=5")
    errors = done.stderr.decode().splitlines()
    assert done.returncode == 2, errors
    assert len(errors) == 1
    assert all(word in errors[0] for word in ("'web'", "max_documents", "--force")), errors


def test_a_preset_is_found_by_its_name(tmp_path):
    names = ("fineweb_edu", "wikipedia", "tinystories", "ultrachat", "oasst")
    off = [part for name in names for part in ("--set", f"sources.{name}.enabled=false")]
    (tmp_path / "a.txt").write_text("mine")
    done = slm(
        "data",
        "prepare",
        "corpus",
        "--out",
        tmp_path / "out",
        *off,
        "--set",
        f"sources.a.path={tmp_path / 'a.txt'}",
    )
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "out" / "a" / "part_00000.jsonl").is_file()


def killed(corpus, out, when):
    """Start a run and kill it once `when(out)` is true; returns whether it was still running."""
    env = {**ENV, "SLM_TEST_BOOKS": str(corpus / "books")}
    process = subprocess.Popen(
        [*COMMAND, corpus / "corpus.json", "--out", out],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while process.poll() is None and not when(out):
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def kill_and_run_again(corpus, expected_folder, out, draw, kills):
    """Kill a run several times, each time a few milliseconds after more files exist."""
    expected = tree(expected_folder)
    marks = sorted(draw.sample(range(2, int(0.8 * len(expected))), kills))
    num_killed = 0
    for mark in marks:
        delay = draw.random() * 0.02

        def has_enough_files(out, mark=mark, delay=delay):
            if sum(1 for file in out.rglob("*") if file.is_file()) < mark:
                return False
            time.sleep(delay)
            return True

        num_killed += killed(corpus, out, has_enough_files)
    done = run(corpus, out)
    assert done.returncode == 0, done.stderr.decode()
    assert num_killed == kills
    assert tree(out) == expected


def test_killed_and_resumed_it_writes_the_same_bytes(corpus, prepared, tmp_path):
    kill_and_run_again(corpus, prepared[0], tmp_path / "out", random.Random(1), 3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_killed_ten_times_it_writes_the_same_bytes(corpus, prepared, tmp_path, seed):
    kill_and_run_again(corpus, prepared[0], tmp_path / "out", random.Random(100 + seed), 10)
