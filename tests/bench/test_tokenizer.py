"""`slm bench tokenizer` measures both sides on the same text and compares their ids."""

from pathlib import Path

import pytest

from slm_fn.bench import tokenizer


# tests/cli/bench/test_group.py runs it once; every run starts five processes.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_both_sides_are_measured_and_their_ids_compared(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It's the 12 cats, and the hats of the bats.\n" * 300)
    report = tokenizer.run([tmp_path], vocab_size=300, repeat=1)
    assert report.identical_ids
    assert report.engine == "gigatoken"
    assert report.text_mb == pytest.approx(0.0132)
    figures = (
        report.train_mb_per_s,
        report.encode_mb_per_s,
        report.pack_mb_per_s,
        report.train_ratio_hf,
    )
    assert all(figure > 0 for figure in figures)
    assert ["train_ratio_hf", round(report.train_ratio_hf, 2)] in tokenizer.rows(report)
