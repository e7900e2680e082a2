"""Problems are raised, or passed on as one line and counted; notes are only passed on."""

import pytest

from slm_fn.data.io.problems import ProblemReporter


def test_without_a_callback_a_problem_is_raised_and_a_note_ignored():
    reporter = ProblemReporter(None)
    reporter.note("a.txt: contains no text; skipped")
    with pytest.raises(ValueError, match=r"b\.txt: cannot be read"):
        reporter.report("b.txt: cannot be read")


def test_with_a_callback_a_problem_is_one_line_and_counted():
    lines = []
    reporter = ProblemReporter(lines.append)
    reporter.report("a.txt: broken\nin two lines")
    reporter.note("b.txt: contains no text; skipped")
    assert lines == ["a.txt: broken in two lines", "b.txt: contains no text; skipped"]
    assert reporter.num_problems == 1
