"""`slm data pack` and `--data` of `slm pretrain`: figures on standard output, problems and notes beside them."""

import json
import os
import subprocess
import sys

import pytest

from slm_fn.cli.pretrain import weighted


def pack(*args):
    return subprocess.run(
        [sys.executable, "-m", "slm_fn.cli.main", "data", "pack", *map(str, args)],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        text=True,
    )


def test_figures_are_one_object_and_problems_are_told_beside(road, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"text": "to be"}\nnot json\n')
    inputs = ["--tokenizer", road.tokenizer, "--in", road.text, "--in", tmp_path / "bad.jsonl", "--seq-len", "32"]
    done = pack(*inputs, "--out", tmp_path / "p", "--split-by", "block", "--val-fraction", "0.4", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["problems"] == 1
    assert told["splits"]["val"]["tokens"] > 0
    assert "bad.jsonl, line 2" in done.stderr
    strict = pack(*inputs, "--out", tmp_path / "q", "--strict")
    assert strict.returncode == 2
    assert "bad.jsonl, line 2" in strict.stderr
    assert not (tmp_path / "q").exists()


def test_data_is_packs_with_or_without_weights(tmp_path):
    assert weighted(["a", "b"]) == (["a", "b"], None)
    assert weighted(["a=0.7", "b/c=0.3"]) == (["a", "b/c"], [0.7, 0.3])
    odd = tmp_path / "x=2"
    odd.mkdir()
    assert weighted([str(odd)]) == ([str(odd)], None)
    with pytest.raises(ValueError, match="every pack a weight, or none"):
        weighted(["a=1", "b"])
    with pytest.raises(ValueError, match="a weight is a number"):
        weighted(["a=much"])
