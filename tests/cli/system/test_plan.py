"""`slm plan` and `slm doctor`: the JSON, the text, and the exit status."""

import json

from click.testing import CliRunner

from slm_fn.cli.system import doctor, plan
from slm_fn.pipeline.planning import doctor as checks

SMALL = [
    f"--set=model.{key}"
    for key in ("num_layers=1", "dim=32", "num_heads=2", "num_kv_heads=2", "ffn_dim=64")
]


def call(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_plan_as_json():
    done = call(plan.command, "tiny", *SMALL, "--device-memory", 2, "--device-tflops", 1, "--json")
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert figures["recommended"]["where"] == "one device"
    keys = (
        "params",
        "flops_per_token",
        "train_peak_mib",
        "kv_cache_mib_per_row",
        "tok_per_s",
        "hours",
        "placements",
    )
    assert all(figures[key] for key in keys)


def test_plan_as_text():
    done = call(
        plan.command, "tiny", *SMALL, "--devices", 2, "--device-memory", 2, "--device-tflops", 1
    )
    assert done.exit_code == 0, done.output
    assert "replicate over 2" in done.stdout
    assert "use replicate: torchrun --nproc-per-node 2" in done.stdout


def test_doctor_names_a_failed_check_and_exits_with_1(monkeypatch):
    passed = call(doctor.command, "--device", "cpu", "--determinism", "--json")
    assert passed.exit_code == 0
    assert json.loads(passed.stdout)["healthy"]
    monkeypatch.setattr(
        checks, "first_difference", lambda *_: checks.Difference("params/norm", 0.5)
    )
    failed = call(doctor.command, "--device", "cpu", "--determinism")
    assert failed.exit_code == 1
    assert "params/norm" in failed.stdout
    assert "1 of 1 checks failed" in failed.stdout


def test_durations_are_readable():
    assert [plan.format_hours(hours) for hours in (0.001, 0.5, 24, 240)] == [
        "4 s",
        "30 min",
        "24.0 h",
        "10.0 days",
    ]
