"""A queue that is fair to clients: many requests of one client do not delay those of another.

Invariant: clients take turns, each in the order of its own items; cancelled items are skipped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items by client, served in round-robin order.

    Args:
        is_cancelled: whether an item no longer needs to be served.

    Example:
        >>> queue = FairQueue[str](is_cancelled=lambda item: item == "left")
        >>> for client, item in [("ada", "a1"), ("ada", "left"), ("ada", "a2"), ("bob", "b1")]:
        ...     queue.push(client, item)
        >>> len(queue), [queue.pop() for _ in range(3)], queue.pop()
        (3, ['a1', 'b1', 'a2'], None)
    """

    def __init__(self, is_cancelled: Callable[[T], bool]) -> None:
        self.is_cancelled = is_cancelled
        self.queues: dict[str, deque[T]] = {}

    def __len__(self) -> int:
        return sum(not self.is_cancelled(item) for item in self)

    def __iter__(self) -> Iterator[T]:
        for queue in list(self.queues.values()):
            yield from list(queue)

    def push(self, client_id: str, item: T) -> None:
        """Adds an item behind the client's others."""
        self.queues.setdefault(client_id, deque()).append(item)

    def pop(self) -> T | None:
        """Removes and returns the next item; None when none waits."""
        while self.queues:
            client_id, queue = next(iter(self.queues.items()))
            del self.queues[client_id]
            while queue and self.is_cancelled(queue[0]):
                queue.popleft()
            if not queue:
                continue
            item = queue.popleft()
            if queue:
                self.queues[client_id] = queue  # behind all other clients
            return item
        return None

    def remove_cancelled(self) -> None:
        """Removes cancelled items, and clients that have no others."""
        remaining = {}
        for client_id, queue in self.queues.items():
            waiting = deque(item for item in queue if not self.is_cancelled(item))
            if waiting:
                remaining[client_id] = waiting
        self.queues = remaining
