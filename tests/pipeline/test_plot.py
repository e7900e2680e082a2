"""pipeline/plot.py: pictures that are there, whole, the same each time, and say what they show."""

import re
import subprocess
import sys

import numpy as np
import pytest

from slm_fn.pipeline import plot

ZIPF = np.array([100, 50, 33, 25, 20, 0, 0])
PANELS = {
    "lengths": (plot.lengths([1, 5, 5, 900], "documents", "tokens"), ["4 documents", "length (tokens, log scale)"]),
    "one length": (plot.lengths([7], "rows", "bytes"), ["1 rows", "median 7 bytes"]),
    "shares": (plot.shares([0.1, 0.5, 0.9], "rows", "tokens that are trained"), ["tokens that are trained (%)"]),
    "sizes": (plot.sizes({1: 256, 2: 90, 9: 1}, "tokens", "bytes"), ["Length of 347 tokens", "tokens (log scale)"]),
    "ranks": (plot.ranks(ZIPF), ["5 tokens used, 2 never", "rank (log scale)", "occurrences (log scale)"]),
    "compression": (plot.compression(np.array([100, 0, 50]), np.array([20, 0, 20])), ["all together: 3.75", "bytes"]),
    "counts": (plot.counts({"a": 1200, "b": 3}, "Removed", "documents"), ["1,200", "Removed", "documents"]),
}


def words(svg: str) -> list[str]:
    """What an SVG says: matplotlib writes each label as a comment beside its outlines."""
    return [word.strip() for word in re.findall(r"<!--(.*?)-->", svg, re.S)]


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_says_what_it_shows(name, tmp_path):
    panel, wanted = PANELS[name]
    svg = plot.save([panel], tmp_path / "a.svg").read_text()
    said = " | ".join(words(svg))
    assert all(word in said for word in wanted), said
    plot.save([panel], tmp_path / "b.svg")
    assert (tmp_path / "b.svg").read_text() == svg


def test_panels_stand_side_by_side(tmp_path):
    from matplotlib import image

    one = image.imread(plot.save([PANELS["ranks"][0]], tmp_path / "one.png"))
    three = image.imread(plot.save([PANELS[name][0] for name in ("ranks", "sizes", "counts")], tmp_path / "three.png"))
    assert one.shape[:2] == (480, 768)
    assert three.shape[:2] == (480, 3 * 768)
    assert one.std() > 0.05  # not an empty sheet
    assert (tmp_path / "one.png").read_bytes() == plot.save([PANELS["ranks"][0]], tmp_path / "c.png").read_bytes()


def test_bars_stand_where_the_lengths_are(tmp_path):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    plot.lengths([3, 3, 3, 400], "rows", "tokens").draw(ax)
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in ax.patches if bar.get_height()]
    (low, high, threes), (low_last, high_last, last) = bars
    assert low < 3 < high < low_last < 400 < high_last
    assert (threes, last) == (3, 1)
    assert ax.get_xscale() == "log"
    narrow = plot.lengths([22, 25, 25], "rows", "tokens")
    narrow.draw(ax := Figure().subplots())
    assert (narrow.x, ax.get_xscale()) == ("length (tokens)", "linear")


def test_many_documents_are_thinned_and_all_are_counted():
    from matplotlib.figure import Figure

    ax, many = Figure().subplots(), np.full(20_001, 12)
    plot.compression(many, many // 4).draw(ax)
    assert plot.MOST_POINTS / 2 < len(ax.collections[0].get_offsets()) <= plot.MOST_POINTS


def test_another_ending_or_nothing_to_draw_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"ends in .png or .svg"):
        plot.save([PANELS["ranks"][0]], tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="nothing to draw"):
        plot.save([], tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_extra_is_named(tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None\nfrom slm_fn.pipeline import plot\n"
        f"try: plot.check({str(tmp_path / 'a.png')!r})\nexcept ValueError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "slm_fn[plot]"' in done.stdout
