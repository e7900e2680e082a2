"""pipeline/plot_runs.py and page.py: the same curves as SVG, PNG and a page that stands by itself."""

import json
import re
from html.parser import HTMLParser

import pytest

from slm_fn.pipeline import page, plot_runs
from slm_fn.train import runlog

ODD = "</script><b>&'\""


class Outline(HTMLParser):
    """Tags, attributes that would load something, and the text of the script element that holds the data."""

    def __init__(self):
        super().__init__()
        self.tags, self.loads, self.data, self.inside = [], [], "", False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.inside = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        self.data += data if self.inside else ""


@pytest.fixture
def runs(tmp_path):
    for name in ("plain", ODD.replace("/", "_")):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        told = {"stage": "pretrain", "started": "2026", "total_steps": 400, "status": "done", "device": "cpu"}
        (path / runlog.RUN).write_text(json.dumps(told))
        for i in range(1, 41):
            row = {"step": 10 * i, "tokens": 640 * i, "train_loss": 4.0 - i / 50, "lr": 0.1, "seconds": 0.5 * i}
            runlog.append(path / runlog.METRICS, row | ({"val_loss": 3.5} if i == 40 else {}))
    return tmp_path / "runs"


def test_a_page_stands_by_itself_and_no_name_breaks_out(runs, tmp_path):
    text = plot_runs.draw([runs], tmp_path / "out.html", log_y=True).read_text()
    seen = Outline()
    seen.feed(text)
    assert seen.loads == []
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text)
    assert seen.tags.count("svg") == 3
    assert seen.tags.count("script") == 2
    assert seen.tags.count("b") == 0
    told = json.loads(seen.data)
    assert told["runs"] == [ODD.replace("/", "_"), "plain"]
    smooth, _, points, _ = sorted(
        told["charts"][0]["curves"], key=lambda curve: (curve["kind"] == "points", curve["run"])
    )
    assert smooth["x"][-1] == points["x"][0] == 400
    assert points["y"] == [3.5]
    assert text.count("<tr>") == 3
    places = [float(x) for x in re.findall(r"M([\d.]+) [\d.]+h0", text)]
    assert places
    assert max(places) < 990  # a dot at the very edge is half a dot
    assert "prefers-color-scheme: dark" in text
    assert '<th scope="row"' in text


def test_every_form_is_drawn(runs, tmp_path):
    svg = plot_runs.draw([runs / "plain"], tmp_path / "out.svg").read_text()
    assert "Learning rate" in svg
    assert plot_runs.draw([runs / "plain"], tmp_path / "again.svg").read_text() == svg
    png = plot_runs.draw([runs], tmp_path / "out.png", ["tokens"], log_y=True)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_folder_named_twice_is_drawn_once(runs):
    assert len(plot_runs.find([runs, runs / "plain"])) == 2


def test_what_cannot_be_drawn_is_said_and_nothing_is_written(runs, tmp_path):
    with pytest.raises(ValueError, match=r"drawn to .html, .png or .svg"):
        plot_runs.draw([runs], tmp_path / "out.pdf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run folders here"):
        plot_runs.draw([tmp_path / "empty"], tmp_path / "out.html")
    with pytest.raises(ValueError, match="they have step"):
        plot_runs.draw([runs], tmp_path / "out.html", keys=["nothing"])
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "empty"}


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1.31, 4.87), (0, 23_000), (1e-5, 3e-3), (-3, 7), (2.0, 2.01)])
def test_ticks_are_round_few_and_inside(low, high):
    found = page.ticks(low, high)
    assert 2 <= len(found) <= 7
    assert all(low - 1e-9 <= at <= high + 1e-9 for at, _ in found)
    assert len({label for _, label in found}) == len(found)


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.7), (0.2, 0.5), (0.30, 0.34), (-3.0, 3.0), (-1.0, 1.0)])
def test_log_ticks_are_told_apart(low, high):
    found = page.log_ticks(low, high)
    assert 3 <= len(found) <= 12
    assert all(low <= at <= high for at, _ in found)
    assert len({label for _, label in found}) == len(found)
