"""`slm runs`: the table is the default command, `plot` draws, and both name what is missing."""

import json

import pytest
from click.testing import CliRunner

from slm_fn.cli.runs import group
from slm_fn.train import run_log


@pytest.fixture
def folder(tmp_path):
    for name, loss, started in (("slow", 2.5, "2026-01"), ("fast", 1.5, "2026-02")):
        path = tmp_path / "all" / name
        path.mkdir(parents=True)
        info = {
            "stage": "pretrain",
            "started": started,
            "total_steps": 20,
            "status": "done",
            "device": "cpu",
        }
        (path / run_log.RUN_INFO).write_text(json.dumps(info))
        for step in (10, 20):
            row = {
                "step": step,
                "tokens": 64_000 * step,
                "train_loss": loss,
                "tok_per_s": 900.0,
                "seconds": step / 10,
            }
            run_log.append(
                path / run_log.METRICS,
                row | {"val_loss": loss + 0.1, "skipped": 3 if name == "slow" else 0},
            )
    return tmp_path / "all"


def call(*args, width=200):
    done = CliRunner().invoke(
        group.command, [str(arg) for arg in args], env={"COLUMNS": width and str(width)}
    )
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def test_the_table_is_the_default_command(folder, monkeypatch):
    text = call(folder)
    assert "1.6000" in text
    assert "20 / 20" in text
    assert "1.28M" in text
    assert "done, 3 skipped" in text
    monkeypatch.chdir(folder)
    assert "fast" in call()
    assert call("table", folder) == call(folder)


def test_no_cell_is_cut_on_a_narrow_terminal(folder):
    for width in (30, 60, 80, None):
        text = call(folder, width=width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= (width or 200)
        if width != 30:
            assert all(word in text for word in ("slow", "2.5000", "2.6000", "20 / 20"))
        assert ("device" in text) == (width is None)


def test_the_table_is_sorted_and_printed_as_json(folder):
    rows = json.loads(call(folder, "--sort", "best", "--json"))
    assert [row["best_val_loss"] for row in rows] == [1.6, 2.6]
    assert [row["status"] for row in rows] == ["done", "done"]
    assert [
        row["run"].rpartition("/")[2] for row in json.loads(call(folder, "--sort=run", "--json"))
    ] == [
        "fast",
        "slow",
    ]


def test_plot_draws(folder, tmp_path):
    out = tmp_path / "curves.html"
    printed = call(
        "plot",
        folder / "fast",
        folder / "slow",
        "--out",
        out,
        "--keys",
        "tok_per_s,skipped",
        "--x",
        "tokens",
    )
    assert printed.strip() == str(out)
    assert out.read_text().count("<figure>") == 3


def test_missing_runs_folders_and_options_are_errors(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="contains no run folders"):
        call(tmp_path / "empty")
    assert "does not exist" in call(tmp_path / "nowhere")
    assert "Missing option '--out'" in call("plot", folder)
    assert "slm runs plot" in call("--help")
