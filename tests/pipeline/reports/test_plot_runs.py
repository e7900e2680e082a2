"""pipeline/reports/plot_runs.py and html.py: the same curves as SVG, PNG and a page."""

import json
import re
from html.parser import HTMLParser

import pytest

from slm_fn.pipeline.reports import html, plot_runs
from slm_fn.train import run_log

UNSAFE_NAME = "</script><b>&'\"".replace("/", "_")


class PageParser(HTMLParser):
    """Collects tags, the attributes that would load something, and the text of the data script."""

    def __init__(self):
        super().__init__()
        self.tags = []
        self.loads = []
        self.data = ""
        self.is_in_data = False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.is_in_data = tag == "script" and ("id", "data") in attrs

    def handle_endtag(self, tag):
        self.is_in_data = self.is_in_data and tag != "script"

    def handle_data(self, data):
        if self.is_in_data:
            self.data += data


@pytest.fixture
def runs(tmp_path):
    info = {
        "stage": "pretrain",
        "started": "2026",
        "total_steps": 400,
        "status": "done",
        "device": "cpu",
    }
    for name in ("plain", UNSAFE_NAME):
        path = tmp_path / "runs" / name
        path.mkdir(parents=True)
        (path / run_log.RUN_INFO).write_text(json.dumps(info))
        for i in range(1, 41):
            row = {
                "step": 10 * i,
                "tokens": 640 * i,
                "train_loss": 4.0 - i / 50,
                "lr": 0.1,
                "seconds": 0.5 * i,
            }
            if i == 40:
                row["val_loss"] = 3.5
            run_log.append(path / run_log.METRICS, row)
    return tmp_path / "runs"


def test_a_page_loads_nothing_and_escapes_names(runs, tmp_path):
    text = plot_runs.draw([runs], tmp_path / "out.html", log_y=True).read_text()
    parser = PageParser()
    parser.feed(text)
    assert parser.loads == []
    assert "http" not in re.sub(r"http://www.w3.org/\S+", "", text)
    assert parser.tags.count("svg") == 3
    assert parser.tags.count("script") == 2
    assert parser.tags.count("b") == 0
    data = json.loads(parser.data)
    assert data["runs"] == [UNSAFE_NAME, "plain"]
    smooth, _, points, _ = sorted(
        data["charts"][0]["curves"], key=lambda curve: (curve["kind"] == "points", curve["run"])
    )
    assert smooth["x"][-1] == points["x"][0] == 400
    assert points["y"] == [3.5]
    assert text.count("<tr>") == 3
    dot_positions = [float(x) for x in re.findall(r"M([\d.]+) [\d.]+h0", text)]
    assert dot_positions
    assert max(dot_positions) < 990  # a dot at the very edge would be cut in half
    assert "prefers-color-scheme: dark" in text
    assert '<th scope="row"' in text


def test_every_format_is_drawn(runs, tmp_path):
    svg = plot_runs.draw([runs / "plain"], tmp_path / "out.svg").read_text()
    assert "Learning rate" in svg
    assert plot_runs.draw([runs / "plain"], tmp_path / "again.svg").read_text() == svg
    png = plot_runs.draw([runs], tmp_path / "out.png", ["tokens"], log_y=True)
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_run_that_is_named_twice_is_drawn_once(runs):
    assert len(plot_runs.find_runs([runs, runs / "plain"])) == 2


def test_an_error_writes_nothing(runs, tmp_path):
    with pytest.raises(ValueError, match=r"drawn to .html, .png or .svg"):
        plot_runs.draw([runs], tmp_path / "out.pdf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run folders here"):
        plot_runs.draw([tmp_path / "empty"], tmp_path / "out.html")
    with pytest.raises(ValueError, match="they have step"):
        plot_runs.draw([runs], tmp_path / "out.html", keys=["nothing"])
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "empty"}


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (1.31, 4.87), (0, 23_000), (1e-5, 3e-3), (-3, 7), (2.0, 2.01)]
)
def test_linear_ticks_are_few_and_inside_with_distinct_labels(low, high):
    ticks = html.linear_ticks(low, high)
    assert 2 <= len(ticks) <= 7
    assert all(low - 1e-9 <= tick.value <= high + 1e-9 for tick in ticks)
    assert len({tick.label for tick in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high"), [(0.1, 0.7), (0.2, 0.5), (0.30, 0.34), (-3.0, 3.0), (-1.0, 1.0)]
)
def test_log_ticks_are_inside_with_distinct_labels(low, high):
    ticks = html.log_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert all(low <= tick.value <= high for tick in ticks)
    assert len({tick.label for tick in ticks}) == len(ticks)
