"""cli/options.py: figures on standard output, notes on standard error."""

from pathlib import Path

from slm_fn.cli import options
from slm_fn.pipeline.run import Outcome
from slm_fn.train.loop import Progress


def test_figures_and_notes_part_ways(capsys):
    options.note("careful")
    options.print_json({"a": [1, None]})
    options.print_table("t", ["x"], [[1], [None]])
    shown = capsys.readouterr()
    assert shown.err == "careful\n"
    assert shown.out.startswith('{"a":[1,null]}\n')


def test_a_run_is_reported_both_ways(capsys):
    done = Outcome(Path("run/step"), Progress(5, 5, 80, 1.25), {"val_loss": 2.5})
    options.report_run(done, as_json=True)
    assert capsys.readouterr().out == '{"checkpoint":"run/step","step":5,"tokens":80,"seconds":1.2,"val_loss":2.5}\n'
    options.report_run(done, as_json=False)
    assert "val_loss 2.5" in capsys.readouterr().out


def test_brackets_in_data_are_no_markup(capsys):
    options.print_table("[/a] [bold]b", ["x"], [["[red]c[/red] [/d]"], [None]])
    shown = capsys.readouterr().out
    assert "[/a] [bold]b" in shown
    assert "[red]c[/red] [/d]" in shown
