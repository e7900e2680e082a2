"""cli/output.py: results go to standard output, notes to standard error."""

from pathlib import Path

from slm_fn.cli import output
from slm_fn.pipeline.training.loop import TrainResult
from slm_fn.train.metrics import Progress


def test_results_and_notes_go_to_different_streams(capsys):
    output.note("careful")
    output.print_json({"a": [1, None]})
    output.print_table("t", ["x"], [[1], [None]])
    printed = capsys.readouterr()
    assert printed.err == "careful\n"
    assert printed.out.startswith('{"a":[1,null]}\n')


def test_a_run_is_printed_as_json_and_as_text(capsys):
    result = TrainResult(Path("run/step"), Progress(5, 5, 80, 1.25), {"val_loss": 2.5})
    output.print_run(result, as_json=True)
    assert (
        capsys.readouterr().out
        == '{"checkpoint":"run/step","step":5,"tokens":80,"seconds":1.2,"val_loss":2.5}\n'
    )
    output.print_run(result, as_json=False)
    assert "val_loss 2.5" in capsys.readouterr().out


def test_brackets_in_data_are_not_markup(capsys):
    output.print_table("[/a] [bold]b", ["x"], [["[red]c[/red] [/d]"], [None]])
    printed = capsys.readouterr().out
    assert "[/a] [bold]b" in printed
    assert "[red]c[/red] [/d]" in printed
