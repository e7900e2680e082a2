"""The bench measures both sides on the same text and compares what they gave."""

from pathlib import Path

import pytest

from slm_fn.bench import measure, tokenizer


@pytest.mark.slow  # tests/cli/test_bench.py runs it once; every run starts five processes
@pytest.mark.filterwarnings("ignore")
def test_both_sides_are_measured_and_their_ids_compared(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("It's the 12 cats, and the hats of the bats.\n" * 300)
    report = tokenizer.run([tmp_path], vocab_size=300, repeat=1)
    assert report.identical_ids
    assert report.engine == "gigatoken"
    assert report.text_mb == pytest.approx(0.0132)
    figures = (report.train_mb_per_s, report.encode_mb_per_s, report.pack_mb_per_s, report.train_ratio_hf)
    assert all(figure > 0 for figure in figures)
    assert ["train_ratio_hf", round(report.train_ratio_hf, 2)] in tokenizer.rows(report)


def test_ratios_and_medians_are_over_rounds() -> None:
    runs = {
        "own": [measure.Measured(1.0, 10), measure.Measured(2.0, 30), measure.Measured(4.0, 20)],
        "peer": [measure.Measured(3.0, 1), measure.Measured(4.0, 1), measure.Measured(4.0, 1)],
    }
    contest = measure.Contest(runs)
    assert contest.seconds("own") == 2
    assert contest.ratio("own", "peer") == 2
    assert contest.peak_mib("own") == 20
