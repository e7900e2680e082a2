"""train/display.py: what a user sees of a training run, on a terminal and in a file."""

import pytest

from slm_fn.train import display


def test_plain_lines_keep_their_distance_and_always_show_the_last():
    lines = []
    plain = display.PlainDisplay("x", 100, seconds=60.0, write=lines.append)
    for step in range(1, 101):
        plain.update(step, {"loss": 1.0})
    assert lines == ["x 100/100 (100 %)  loss 1.000"]


def test_the_live_bar_draws(capsys):
    with display.make_display("x", 2, live=True) as bar:
        bar.update(1, {"loss": 2.0, "lr": 0.1, "tok_per_s": 5.0})
        bar.note("step 1: saved here")
    shown = capsys.readouterr().err
    assert "saved here" in shown
    assert "50%" in shown


def test_off_a_terminal_the_display_is_plain():
    assert isinstance(display.make_display("x", 1), display.PlainDisplay)


def test_a_silent_display_shows_nothing(capsys):
    with display.make_silent_display("x", 1) as silent:
        silent.update(1, {"loss": 1.0})
        silent.note("step 1: saved here")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("width", [60, 80, 120])
def test_clocks_and_the_loss_are_complete_on_a_narrow_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with display.LiveDisplay("pretrain", 900) as live:
        live.update(450, {"loss": 2.3456, "lr": 1e-3, "tok_per_s": 12345.0})
    shown = [line for line in capsys.readouterr().err.splitlines() if "left" in line][-1]
    assert all(word in shown for word in ("0:00:00", "-:--:--", "50%", "loss 2.346")), shown
    assert ("━" in shown) == (width == 120)
    assert ("12,345 tok/s" in shown) == (width >= 80)
