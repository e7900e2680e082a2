"""Reporting of input that cannot be read: raised as an error, or passed to a callback and counted.

Invariant: a problem is one line; it is either raised or passed to the callback, never dropped.
"""

from __future__ import annotations

from collections.abc import Callable

OnProblem = Callable[[str], None]
"""Receives one line for each input that cannot be read; reading continues unless it raises."""


class ProblemReporter:
    """Passes problems to a callback and counts them; without a callback it raises them.

    The count lets a caller distinguish a file that is empty from one that could not be read.

    Args:
        on_problem: receives one line per problem; None raises ValueError instead.

    Example:
        >>> reporter = ProblemReporter(print)
        >>> reporter.report("a.txt: cannot be read")
        a.txt: cannot be read
        >>> reporter.num_problems
        1
    """

    def __init__(self, on_problem: OnProblem | None) -> None:
        self.on_problem = on_problem
        self.num_problems = 0

    def report(self, line: str) -> None:
        """Count a problem and pass it on as one line.

        Raises:
            ValueError: there is no callback.
        """
        self.num_problems += 1
        if self.on_problem is None:
            raise ValueError(line)
        self.on_problem(" ".join(line.splitlines()))

    def note(self, line: str) -> None:
        """Pass on a remark about input that was read without loss; it is not counted or raised."""
        if self.on_problem is not None:
            self.on_problem(line)
