"""data/pack/build.py: which packer may resume another's work, and settings that are refused."""

import hashlib

import pytest

from slm_fn.data.pack import build
from slm_fn.data.pack.build import PackSettings, PackTokenizer

TOKENIZER = PackTokenizer(lambda texts: None, 257, 0, "{}", "fingerprint")
SETTINGS = PackSettings(seq_len=16, shard_size=300, val_fraction=0.2, val_names=("b", "a", "b"))


def test_a_job_is_named_as_in_the_journals_of_earlier_versions():
    values = (1, "fingerprint", 0, 16, 300, 0.2, ["a", "b"], "document")
    expected = hashlib.sha256(repr(("inputs", values)).encode()).hexdigest()
    assert build._job_id("inputs", TOKENIZER, SETTINGS) == expected


@pytest.mark.parametrize(
    "changes",
    [{"seq_len": 8}, {"shard_size": 299}, {"val_names": ("a",)}, {"split_by": "block"}],
)
def test_other_settings_are_another_job(changes):
    other = SETTINGS._replace(**changes)
    assert build._job_id("x", TOKENIZER, other) != build._job_id("x", TOKENIZER, SETTINGS)


def test_without_named_inputs_nothing_is_resumed():
    assert build._job_id("", TOKENIZER, SETTINGS) == ""


@pytest.mark.parametrize(
    ("changes", "workers"),
    [({"seq_len": 0}, 0), ({"shard_size": 0}, 0), ({"val_fraction": 1.5}, 0), ({}, -1)],
)
def test_settings_out_of_range_are_refused(tmp_path, changes, workers):
    with pytest.raises(ValueError, match="pack: seq_len"):
        build.pack([], TOKENIZER, SETTINGS._replace(**changes), tmp_path / "p", workers)
    assert not (tmp_path / "p").exists()
