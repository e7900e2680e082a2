"""train/runlog.py: the diary after a resume, and what a person sees."""

import pytest

from slm_fn.train import runlog


def test_rewind_drops_later_lines_and_a_line_cut_short(tmp_path):
    path = tmp_path / runlog.METRICS
    for step in (10, 20, 30):
        runlog.append(path, {"step": step})
    with open(path, "ab") as file:
        file.write(b'{"step": 5, "tr')
    runlog.rewind(tmp_path, 20)
    assert [row["step"] for row in runlog.read(path)] == [10, 20]
    assert path.read_bytes().endswith(b"\n")


def test_a_line_being_written_is_not_read(tmp_path):
    path = tmp_path / runlog.METRICS
    runlog.append(path, {"step": 1})
    with open(path, "ab") as file:
        file.write(b'{"step": 2')
    assert [row["step"] for row in runlog.read(path)] == [1]


def test_plain_lines_keep_their_distance_and_always_show_the_last():
    lines = []
    plain = runlog.Plain("x", 100, seconds=60.0, write=lines.append)
    for step in range(1, 101):
        plain.update(step, {"loss": 1.0})
    assert lines == ["x 100/100 (100 %)  loss 1.000"]


def test_the_live_bar_draws(capsys):
    with runlog.display("x", 2, live=True) as bar:
        bar.update(1, {"loss": 2.0, "lr": 0.1, "tok_per_s": 5.0})
        bar.note("step 1: saved here")
    shown = capsys.readouterr().err
    assert "saved here" in shown
    assert "50%" in shown


def test_off_a_terminal_the_display_is_plain():
    assert isinstance(runlog.display("x", 1), runlog.Plain)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_clocks_and_the_loss_are_whole_on_a_narrow_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with runlog.Live("pretrain", 900) as live:
        live.update(450, {"loss": 2.3456, "lr": 1e-3, "tok_per_s": 12345.0})
    shown = [line for line in capsys.readouterr().err.splitlines() if "left" in line][-1]
    assert all(word in shown for word in ("0:00:00", "-:--:--", "50%", "loss 2.346")), shown
    assert ("━" in shown) == (width == 120)
    assert ("12,345 tok/s" in shown) == (width >= 80)
