"""`slm data pack` and `--data` of `slm pretrain`.

Figures on standard output, problems on standard error.
"""

import json
import os
import subprocess
import sys

import pytest

from slm_fn.cli.training.pretrain import parse_packs


def pack(*args):
    return subprocess.run(
        [sys.executable, "-m", "slm_fn.cli.main", "data", "pack", *map(str, args)],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        text=True,
    )


def test_figures_are_one_object_and_problems_go_to_standard_error(project, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "to be"}\nnot json\n')
    inputs = [
        "--tokenizer",
        project.tokenizer,
        "--in",
        project.text,
        "--in",
        tmp_path / "bad.jsonl",
        "--seq-len",
        "32",
    ]
    done = pack(
        *inputs, "--out", tmp_path / "p", "--split-by", "block", "--val-fraction", "0.4", "--json"
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["problems"] == 1
    assert figures["splits"]["val"]["tokens"] > 0
    assert "bad.jsonl, line 2" in done.stderr
    strict = pack(*inputs, "--out", tmp_path / "q", "--strict")
    assert strict.returncode == 2
    assert "bad.jsonl, line 2" in strict.stderr
    assert not (tmp_path / "q").exists()


def test_packs_have_weights_or_none(tmp_path):
    assert parse_packs(["a", "b"]) == (["a", "b"], None)
    assert parse_packs(["a=0.7", "b/c=0.3"]) == (["a", "b/c"], [0.7, 0.3])
    folder = tmp_path / "x=2"
    folder.mkdir()
    assert parse_packs([str(folder)]) == ([str(folder)], None)
    with pytest.raises(ValueError, match="every pack a weight, or none"):
        parse_packs(["a=1", "b"])
    with pytest.raises(ValueError, match="a weight is a number"):
        parse_packs(["a=much"])
