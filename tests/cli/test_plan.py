"""`slm plan` and `slm doctor`: what scripts read, what people read, and the exit status."""

import json

from click.testing import CliRunner

from slm_fn.cli import doctor, plan
from slm_fn.pipeline import doctor as checks

SMALL = [f"--set=model.{key}" for key in ("num_layers=1", "dim=32", "num_heads=2", "num_kv_heads=2", "ffn_dim=64")]


def call(command, *args):
    return CliRunner().invoke(command, [str(arg) for arg in args])


def test_plan_prints_its_figures():
    done = call(plan.command, "tiny", *SMALL, "--device-memory", 2, "--device-tflops", 1, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["recommended"]["where"] == "one device"
    keys = ("params", "flops_per_token", "train_peak_mib", "kv_cache_mib_per_row", "tok_per_s", "hours", "placements")
    assert all(told[key] for key in keys)


def test_plan_says_it_for_people():
    done = call(plan.command, "tiny", *SMALL, "--devices", 2, "--device-memory", 2, "--device-tflops", 1)
    assert done.exit_code == 0, done.output
    assert "replicate over 2" in done.stdout
    assert "take replicate: torchrun --nproc-per-node 2" in done.stdout


def test_doctor_says_what_is_wrong_and_exits_with_one(monkeypatch):
    well = call(doctor.command, "--device", "cpu", "--determinism", "--json")
    assert well.exit_code == 0
    assert json.loads(well.stdout)["healthy"]
    monkeypatch.setattr(checks, "first_difference", lambda *_: ("params/norm", 0.5))
    ill = call(doctor.command, "--device", "cpu", "--determinism")
    assert ill.exit_code == 1
    assert "params/norm" in ill.stdout
    assert "1 of 1 checks went wrong" in ill.stdout


def test_times_for_people():
    assert [plan.duration(hours) for hours in (0.001, 0.5, 24, 240)] == ["4 s", "30 min", "24.0 h", "10.0 days"]
