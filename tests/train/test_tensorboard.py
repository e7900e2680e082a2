"""train/tensorboard.py: TensorBoard reads the metrics back, also after a resume."""

import subprocess
import sys

import pytest

from slm_fn.train import tensorboard


def read(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / tensorboard.FOLDER))
    events.Reload()
    return {
        tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]
    }


def test_scalars_are_the_numbers_of_metrics_jsonl(tmp_path):
    with tensorboard.open_writer(tmp_path, 0) as write:
        write({"step": 1, "train_loss": 2.5, "tokens": 64, "acts/0/ffn/rms": 0.5, "val_loss": None})
        write({"step": 2, "train_loss": 2.25, "tokens": 128, "acts/0/ffn/rms": float("nan")})
    assert read(tmp_path) == {
        "train_loss": [(1, 2.5), (2, 2.25)],
        "tokens": [(1, 64.0), (2, 128.0)],
        "acts/0/ffn/rms": [(1, 0.5)],
    }


def test_a_resumed_run_goes_on_with_its_curve(tmp_path):
    with tensorboard.open_writer(tmp_path, 0) as write:
        for step in (1, 2, 3, 4):
            write({"step": step, "train_loss": 1.0})
    with tensorboard.open_writer(tmp_path, 2) as write:  # the last checkpoint was of step 2
        for step in (3, 4, 5):
            write({"step": step, "train_loss": 2.0})
    assert read(tmp_path)["train_loss"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]


def test_without_tensorboard_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['tensorboard'] = None\n"
        "from slm_fn.train import tensorboard as board\n"
        "try: board.check_installed()\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "slm_fn[tensorboard]"' in done.stdout


@pytest.mark.parametrize("value", [None, "text", float("inf")])
def test_what_is_no_number_is_left_out(tmp_path, value):
    with tensorboard.open_writer(tmp_path, 0) as write:
        write({"step": 1, "odd": value, "fine": 1})
    assert read(tmp_path) == {"fine": [(1, 1.0)]}
