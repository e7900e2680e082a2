"""pipeline/demo.py.

The whole pipeline with a model too small to learn, and a report of what was measured.
"""

import msgspec
import pytest

from slm_fn.pipeline.stages import demo
from slm_fn.pipeline.stages.demo import DemoReport

SMALL = (
    "tokenizer.vocab_size=400",
    *(
        f"model.{key}"
        for key in ("dim=16", "num_layers=1", "num_heads=1", "num_kv_heads=1", "ffn_dim=16")
    ),
    *(f"{stage}.train.total_steps=2" for stage in ("pretrain", "sft", "dpo")),
)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    said: list[str] = []
    return out, demo.demo(out, "tiny", True, SMALL, "cpu", False, said.append), said


def test_the_report_holds_every_figure(walked):
    out, report, _ = walked
    assert [row.stage for row in report.rows] == [
        "prepare",
        "tokenize",
        "pretrain",
        "sft",
        "dpo",
        "judge",
    ]
    assert 3 < report.rows[2].bits_per_byte < 9
    assert 0 <= report.rows[4].preference_accuracy <= 1
    assert len(report.samples) == 3
    assert 500 < report.preference_pairs <= 570, (
        "all but those too long for a vocabulary this small"
    )
    assert msgspec.json.decode((out / "report.json").read_bytes(), type=DemoReport) == report


def test_each_stage_is_announced(walked):
    announced = [line for line in walked[2] if line.startswith("[")]
    assert [line[:5] for line in announced] == [f"[{i}/6]" for i in range(1, 7)]


def test_the_demo_walks_on_where_it_stopped(walked):
    out, report, _ = walked
    again = demo.demo(out, "tiny", True, SMALL, "cpu", False, lambda line: None)
    assert again.samples == report.samples
    assert [row.bits_per_byte for row in again.rows] == [row.bits_per_byte for row in report.rows]
