"""pipeline/reports/text_plots.py: pictures are complete, reproducible, and label what they show."""

import re
import subprocess
import sys

import numpy as np
import pytest

from slm_fn.pipeline.reports import text_plots

ZIPF = np.array([100, 50, 33, 25, 20, 0, 0])
PANELS = {
    "lengths": (
        text_plots.length_panel([1, 5, 5, 900], "documents", "tokens"),
        ["4 documents", "length (tokens, log scale)"],
    ),
    "one length": (text_plots.length_panel([7], "rows", "bytes"), ["1 rows", "median 7 bytes"]),
    "shares": (
        text_plots.share_panel([0.1, 0.5, 0.9], "rows", "tokens that are trained"),
        ["tokens that are trained (%)"],
    ),
    "sizes": (
        text_plots.size_panel({1: 256, 2: 90, 9: 1}, "tokens", "bytes"),
        ["Length of 347 tokens", "tokens (log scale)"],
    ),
    "ranks": (
        text_plots.rank_panel(ZIPF),
        ["5 tokens used, 2 never", "rank (log scale)", "occurrences (log scale)"],
    ),
    "compression": (
        text_plots.compression_panel(np.array([100, 0, 50]), np.array([20, 0, 20])),
        ["all together: 3.75", "bytes"],
    ),
    "counts": (
        text_plots.count_panel({"a": 1200, "b": 3}, "Removed", "documents"),
        ["1,200", "Removed", "documents"],
    ),
}


def svg_texts(svg: str) -> list[str]:
    """Returns the texts of an SVG: matplotlib writes each label as a comment above its outlines."""
    return [word.strip() for word in re.findall(r"<!--(.*?)-->", svg, re.S)]


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_labels_what_it_shows(name, tmp_path):
    panel, labels = PANELS[name]
    svg = text_plots.save([panel], tmp_path / "a.svg").read_text()
    texts = " | ".join(svg_texts(svg))
    assert all(label in texts for label in labels), texts
    text_plots.save([panel], tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == svg


def test_panels_are_side_by_side(tmp_path):
    from matplotlib import image

    one = image.imread(text_plots.save([PANELS["ranks"][0]], tmp_path / "one.png"))
    three = image.imread(
        text_plots.save(
            [PANELS[name][0] for name in ("ranks", "sizes", "counts")], tmp_path / "three.png"
        )
    )
    assert one.shape[:2] == (480, 768)
    assert three.shape[:2] == (480, 3 * 768)
    assert one.std() > 0.05  # not an empty picture
    assert (tmp_path / "one.png").read_bytes() == text_plots.save(
        [PANELS["ranks"][0]], tmp_path / "c.png"
    ).read_bytes()


def test_bars_are_at_the_lengths(tmp_path):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    text_plots.length_panel([3, 3, 3, 400], "rows", "tokens").draw(ax)
    bars = [
        (bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height())
        for bar in ax.patches
        if bar.get_height()
    ]
    (low, high, threes), (low_last, high_last, last) = bars
    assert low < 3 < high < low_last < 400 < high_last
    assert (threes, last) == (3, 1)
    assert ax.get_xscale() == "log"
    narrow = text_plots.length_panel([22, 25, 25], "rows", "tokens")
    narrow.draw(ax := Figure().subplots())
    assert (narrow.x_label, ax.get_xscale()) == ("length (tokens)", "linear")


def test_many_documents_are_thinned():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    num_bytes = np.full(20_001, 12)
    text_plots.compression_panel(num_bytes, num_bytes // 4).draw(ax)
    num_points = len(ax.collections[0].get_offsets())
    limit = text_plots.MAX_SCATTER_POINTS
    assert limit / 2 < num_points <= limit


def test_another_suffix_or_no_panels_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .png or .svg"):
        text_plots.save([PANELS["ranks"][0]], tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="nothing to draw"):
        text_plots.save([], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from slm_fn.pipeline.reports import text_plots\n"
        f"try: text_plots.check_path({str(tmp_path / 'a.png')!r})\n"
        "except ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "slm_fn[plot]"' in done.stdout
