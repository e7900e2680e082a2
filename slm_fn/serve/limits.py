"""Tokens per minute, by whoever asks: reserved before a request is taken in, what was not used is given back.

Invariant: no identity spends more than its rate times the time, and one minute's worth; the table of identities does
not grow beyond those who asked within a minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from slm_fn.serve.errors import ApiError


class TokenRate:
    """A bucket per identity that fills at `per_minute` and holds as much; 0 is no limit. Lives on the event loop.

    Example:
        >>> rate = TokenRate(60, clock=iter([0.0, 0.0, 10.0]).__next__)
        >>> rate.take("ada", 50), rate.take("ada", 10), rate.level("ada")
        (50, 10, 10.0)
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self.clock = per_minute, clock
        self.buckets: dict[str, tuple[float, float]] = {}

    def level(self, who: str) -> float:
        """How many tokens are there now."""
        return self._level(who, self.clock())

    def _level(self, who: str, now: float) -> float:
        level, then = self.buckets.get(who, (float(self.per_minute), now))
        return min(float(self.per_minute), level + (now - then) * self.per_minute / 60)

    def take(self, who: str, tokens: int) -> int:
        """Reserve tokens and say how many were; a request for more than a minute's worth takes that much.

        Raises:
            ApiError: 429 that says when there will be enough.
        """
        if not self.per_minute:
            return 0
        now, wanted = self.clock(), min(tokens, self.per_minute)
        level = self._level(who, now)
        if level < wanted:
            wait = math.ceil((wanted - level) * 60 / self.per_minute)
            raise ApiError(429, "too many tokens in this minute", "rate_limit_exceeded", retry_after=wait)
        if who not in self.buckets:  # a full bucket is as good as none
            self.buckets = {w: b for w, b in self.buckets.items() if self._level(w, now) < self.per_minute}
        self.buckets[who] = (level - wanted, now)
        return wanted

    def give_back(self, who: str, tokens: int) -> None:
        """Return what was reserved and not used."""
        if self.per_minute and tokens > 0:
            now = self.clock()
            self.buckets[who] = (min(float(self.per_minute), self._level(who, now) + tokens), now)
