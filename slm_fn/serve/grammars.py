"""Forms that replies must have, made ready: tried in a process of their own first, then kept for who asks next.

A schema of a hundred kilobytes overflows the stack of the library that reads it, and one of thirty bytes keeps it busy
for minutes: a process may die of that, the server may not.

Invariant: no grammar that a client wrote is read in this process before another process read it in time; one at a
time is read, on a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import msgspec

from slm_fn.infer import constrain
from slm_fn.infer.constrain import Constraint, Grammar
from slm_fn.serve.errors import ApiError, invalid
from slm_fn.text.tokenizer import Tokenizer

KEPT = 16
FEW = 4
"""Grammars of one client that may wait to be read."""


class Grammars:
    """Lives on the event loop; its thread and its process begin with the first grammar."""

    def __init__(self, tokenizer: Tokenizer, stop_ids: Collection[int], seconds: float) -> None:
        self.tokenizer, self.stop_ids, self.seconds = tokenizer, frozenset(stop_ids), seconds
        self.made: OrderedDict[bytes, tuple[str, asyncio.Future[Constraint]]] = OrderedDict()
        self.pool = ThreadPoolExecutor(1, "slm-grammars")
        self.process: subprocess.Popen[str] | None = None
        self.closed = False

    async def ready(self, grammar: Grammar, who: str) -> Constraint:
        """The form, for a client who is told what is wrong with it before the first byte of a reply.

        Raises:
            ApiError: 400: it is wrong, takes too long, or is too large; 429: many of this client's are being read.
        """
        name = msgspec.json.encode(grammar)
        if name not in self.made:
            if sum(asked == who and not made.done() for asked, made in self.made.values()) >= FEW:
                raise ApiError(
                    429, "too many grammars of yours are being read; try again in a moment", "rate_limit_exceeded"
                )
            making = asyncio.get_running_loop().run_in_executor(self.pool, self._make, grammar)
            making.add_done_callback(lambda made: self._settle(name, made))
            self.made[name] = who, making
        self.made.move_to_end(name)
        return await asyncio.shield(self.made[name][1])  # others may wait for it as well

    def _settle(self, name: bytes, made: asyncio.Future[Constraint]) -> None:
        """Keep what was made; what failed may do better another time."""
        if made.cancelled() or made.exception() is not None:
            del self.made[name]
        done = [other for other, (_, future) in self.made.items() if future.done()]
        for old in done[:-KEPT]:
            del self.made[old]

    def close(self) -> None:
        """End the process, and with it whatever is read there."""
        self.closed = True
        if self.process is not None:
            self.process.kill()
        self.pool.shutdown(cancel_futures=True)
        if self.process is not None:
            _end(self.process)

    def _make(self, grammar: Grammar) -> Constraint:
        try:
            self._try(constrain.rules(grammar))
            constraint = constrain.compile(self.tokenizer, self.stop_ids, grammar)
        except ValueError as error:
            raise invalid(str(error), "response_format", "unsupported_grammar") from None
        constrain.allow(constraint.start())  # the library keeps it: the first token costs the engine nothing
        return constraint

    def _try(self, rules: str) -> None:
        """Let the process read the rules.

        Raises:
            ValueError: it died of them, or of their length.
        """
        process = self.process
        if process is None or process.poll() is not None:
            process = self.process = self._begin()
        told = _ask(process, json.dumps(rules))
        if told is None:
            _end(process)
            if self.closed:
                raise ApiError(503, "the server is shutting down", "shutting_down")
            raise ValueError(f"the grammar is too large, or takes longer to read than {self.seconds:g} seconds")
        if told:
            raise ValueError(f"the grammar is too large: {told.splitlines()[0]}")

    def _begin(self) -> subprocess.Popen[str]:
        """A process that knows the vocabulary."""
        path = os.pathsep.join(place for place in sys.path if place)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "slm_fn.serve.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl+C is for the server
        )
        specials = self.tokenizer.specials
        tokens = [self._bytes(token).decode("latin-1") for token in range(self.tokenizer.vocab_size)]
        told = {"tokens": tokens, "specials": sorted(specials.values()), "stops": sorted(self.stop_ids)}
        _say(process, json.dumps({**told, "seconds": self.seconds}))
        return process

    def _bytes(self, token: int) -> bytes:
        name = next((name for name, i in self.tokenizer.specials.items() if i == token), None)
        try:
            return self.tokenizer.token_bytes(token) if name is None else name.encode()
        except ValueError:
            return b""  # a row that pads the embedding


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with suppress(OSError), process:
        pass  # its pipes are closed, and it is waited for


def _say(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _ask(process: subprocess.Popen[str], line: str) -> str | None:
    """What the process answers; None if it dies instead."""
    assert process.stdout is not None
    try:
        _say(process, line)
        answer = process.stdout.readline()
    except OSError:
        return None
    return str(json.loads(answer)) if answer else None
