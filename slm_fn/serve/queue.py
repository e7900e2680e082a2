"""A fair line with a bound: whoever asks much waits behind their own requests, not before everybody else's.

Invariant: identities take turns, each in the order it asked; what was cancelled while waiting takes no place.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Line(Generic[T]):
    """Waiting items by identity.

    Example:
        >>> line = Line[str](gone=lambda item: item == "left")
        >>> for who, item in [("ada", "a1"), ("ada", "left"), ("ada", "a2"), ("bob", "b1")]:
        ...     line.push(who, item)
        >>> len(line), [line.pop() for _ in range(3)], line.pop()
        (3, ['a1', 'b1', 'a2'], None)
    """

    def __init__(self, gone: Callable[[T], bool]) -> None:
        self.gone = gone
        self.lines: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(not self.gone(item) for item in self)

    def __iter__(self) -> Iterator[T]:
        return (item for line in list(self.lines.values()) for item in list(line))

    def push(self, who: str, item: T) -> None:
        """Stand in line."""
        self.lines.setdefault(who, deque()).append(item)

    def pop(self) -> T | None:
        """The next in turn; None when nobody waits."""
        while self.lines:
            who, line = next(iter(self.lines.items()))
            del self.lines[who]
            while line and self.gone(line[0]):
                line.popleft()
            if line:
                item = line.popleft()
                if line:
                    self.lines[who] = line  # behind all others
                return item
        return None

    def sweep(self) -> None:
        """Forget what is gone, so that nobody who leaves leaves anything behind."""
        kept = {who: deque(item for item in line if not self.gone(item)) for who, line in self.lines.items()}
        self.lines = {who: line for who, line in kept.items() if line}
