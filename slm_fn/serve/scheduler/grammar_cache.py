"""The cache of compiled grammars; each is checked in the sandbox before this process compiles it.

A schema of a hundred kilobytes overflows the stack of the library that compiles it, and one of
thirty bytes keeps it busy for minutes. A crash in the sandbox does not affect the server.

Invariant: no client's grammar is compiled in this process before the sandbox compiled it in time;
one is compiled at a time, on a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from slm_fn.infer import constraints
from slm_fn.infer.constraints import Constraint, Grammar
from slm_fn.serve.protocol.errors import ApiError, invalid_request
from slm_fn.serve.scheduler.sandbox_process import SandboxProcess
from slm_fn.text.tokenizer import Tokenizer

MAX_CACHED = 16
MAX_PENDING_PER_CLIENT = 4


class Entry(NamedTuple):
    """A grammar in the cache, and the client that requested it first."""

    client_id: str
    constraint: asyncio.Future[Constraint]


class GrammarCache:
    """Compiles grammars and keeps the most recently used ones. Used on the event loop.

    Its thread and its process start with the first grammar.

    Args:
        tokenizer: the vocabulary of the grammars.
        stop_ids: ids that end a text.
        timeout_seconds: limit of compiling one grammar.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: Collection[int], timeout_seconds: float
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = frozenset(stop_ids)
        self.sandbox = SandboxProcess(tokenizer, self.stop_ids, timeout_seconds)
        self.pool = ThreadPoolExecutor(1, "slm-grammars")
        self.entries: OrderedDict[bytes, Entry] = OrderedDict()

    async def get(self, grammar: Grammar, client_id: str) -> Constraint:
        """Returns a compiled grammar, from the cache if it is there.

        Raises:
            ApiError: 400: the grammar is invalid, too large, or takes too long; 429: too many of
                this client's grammars are being compiled.
        """
        key = msgspec.json.encode(grammar)
        if key not in self.entries:
            self._check_pending(client_id)
            loop = asyncio.get_running_loop()
            compiling = loop.run_in_executor(self.pool, self._compile, grammar)
            compiling.add_done_callback(lambda done: self._trim(key, done))
            self.entries[key] = Entry(client_id, compiling)
        self.entries.move_to_end(key)
        # Shielded, because other requests may wait for the same grammar.
        return await asyncio.shield(self.entries[key].constraint)

    def _check_pending(self, client_id: str) -> None:
        entries = self.entries.values()
        num_pending = sum(
            entry.client_id == client_id and not entry.constraint.done() for entry in entries
        )
        if num_pending >= MAX_PENDING_PER_CLIENT:
            message = "too many of your grammars are being compiled; try again in a moment"
            raise ApiError(429, message, "rate_limit_exceeded")

    def _trim(self, key: bytes, done: asyncio.Future[Constraint]) -> None:
        """Removes a grammar that failed, which may succeed at another time, and the oldest ones."""
        if done.cancelled() or done.exception() is not None:
            del self.entries[key]
        compiled = [each for each, entry in self.entries.items() if entry.constraint.done()]
        for oldest in compiled[:-MAX_CACHED]:
            del self.entries[oldest]

    def close(self) -> None:
        """Ends the process, and with it the grammar that is being compiled."""
        self.sandbox.kill()
        self.pool.shutdown(cancel_futures=True)
        self.sandbox.wait()

    def _compile(self, grammar: Grammar) -> Constraint:
        try:
            self.sandbox.check(constraints.to_llguidance(grammar))
            constraint = constraints.compile(self.tokenizer, self.stop_ids, grammar)
        except ValueError as error:
            raise invalid_request(str(error), "response_format", "unsupported_grammar") from None
        # The library caches this, so the first token costs the engine nothing.
        constraints.allowed_tokens(constraint.start())
        return constraint
