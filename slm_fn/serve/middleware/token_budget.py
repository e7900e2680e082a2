"""Tokens per minute and client: reserved before a request is queued; unused ones are returned.

Invariant: no client spends more than one minute's tokens plus the rate times the time; the table
holds only clients that sent a request within the last minute.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from slm_fn.serve.protocol.errors import ApiError


class Bucket(NamedTuple):
    """The tokens that a client had at a time."""

    level: float
    time: float


class TokenBudget:
    """A token bucket per client that fills at `per_minute` and holds as much; 0 means no limit.

    Used on the event loop only.

    Args:
        per_minute: tokens per minute and client.
        clock: seconds.

    Example:
        >>> budget = TokenBudget(60, clock=iter([0.0, 0.0, 10.0]).__next__)
        >>> budget.reserve("ada", 50), budget.reserve("ada", 10), budget.available("ada")
        (50, 10, 10.0)
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self.clock = clock
        self.buckets: dict[str, Bucket] = {}

    def available(self, client_id: str) -> float:
        """Returns how many tokens a client may spend now."""
        return self._level(client_id, self.clock())

    def _level(self, client_id: str, now: float) -> float:
        full = float(self.per_minute)
        bucket = self.buckets.get(client_id, Bucket(full, now))
        refilled = (now - bucket.time) * self.per_minute / 60
        return min(full, bucket.level + refilled)

    def reserve(self, client_id: str, num_tokens: int) -> int:
        """Reserves tokens and returns how many: at most one minute's worth.

        Raises:
            ApiError: 429, with the seconds until there will be enough.
        """
        if not self.per_minute:
            return 0
        now = self.clock()
        num_reserved = min(num_tokens, self.per_minute)
        level = self._level(client_id, now)
        if level < num_reserved:
            wait_seconds = math.ceil((num_reserved - level) * 60 / self.per_minute)
            raise ApiError(
                429,
                "token rate limit exceeded",
                "rate_limit_exceeded",
                retry_after=wait_seconds,
            )
        if client_id not in self.buckets:
            self._drop_full_buckets(now)
        self.buckets[client_id] = Bucket(level - num_reserved, now)
        return num_reserved

    def _drop_full_buckets(self, now: float) -> None:
        """Removes full buckets, which equal no bucket, so that the table stays small."""
        self.buckets = {
            client_id: bucket
            for client_id, bucket in self.buckets.items()
            if self._level(client_id, now) < self.per_minute
        }

    def give_back(self, client_id: str, num_tokens: int) -> None:
        """Returns tokens that were reserved and not used."""
        if not self.per_minute or num_tokens <= 0:
            return
        now = self.clock()
        level = min(float(self.per_minute), self._level(client_id, now) + num_tokens)
        self.buckets[client_id] = Bucket(level, now)
