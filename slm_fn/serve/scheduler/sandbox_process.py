"""The server's side of the grammar sandbox: starts the process, sends it rules, reads its answers.

Invariant: rules that crash the process or exceed its time limit are an error of the request, and
the next rules are read by a new process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Collection
from contextlib import suppress

from slm_fn.serve.protocol.errors import ApiError
from slm_fn.text.tokenizer import Tokenizer


class SandboxProcess:
    """A process that compiles one grammar at a time; it starts with the first one.

    Args:
        tokenizer: the vocabulary of the grammars.
        stop_ids: ids that end a text.
        timeout_seconds: limit of one grammar.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop_ids: Collection[int], timeout_seconds: float
    ) -> None:
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.timeout_seconds = timeout_seconds
        self.process: subprocess.Popen[str] | None = None
        self.is_closed = False

    def check(self, rules: str) -> None:
        """Lets the process compile rules.

        Raises:
            ValueError: they crashed it, took too long, or exceed a limit of the library.
            ApiError: 503: the server is shutting down.
        """
        process = self._running_process()
        error = _request(process, json.dumps(rules))
        if error is None:
            _stop(process)
            if self.is_closed:
                raise ApiError(503, "the server is shutting down", "shutting_down")
            raise ValueError(
                "the grammar is too large, or takes longer to compile than "
                f"{self.timeout_seconds:g} seconds"
            )
        if error:
            raise ValueError(f"the grammar is too large: {error.splitlines()[0]}")

    def _running_process(self) -> subprocess.Popen[str]:
        """Returns the process; starts a new one if there is none or if it has ended."""
        if self.process is not None and self.process.poll() is not None:
            _stop(self.process)
            self.process = None
        if self.process is None:
            self.process = self._start()
        return self.process

    def kill(self) -> None:
        """Ends the process at once; a `check` in progress raises 503."""
        self.is_closed = True
        if self.process is not None:
            self.process.kill()

    def wait(self) -> None:
        """Waits for a killed process and closes its pipes."""
        if self.process is not None:
            _stop(self.process)

    def _start(self) -> subprocess.Popen[str]:
        """Starts the process and sends it the vocabulary."""
        python_path = os.pathsep.join(path for path in sys.path if path)
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "slm_fn.serve.scheduler.grammar_sandbox"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl+C must reach the server only
        )
        setup = {
            "tokens": self._token_texts(),
            "specials": sorted(self.tokenizer.special_tokens.values()),
            "stops": sorted(self.stop_ids),
            "seconds": self.timeout_seconds,
        }
        _write_line(process, json.dumps(setup))
        return process

    def _token_texts(self) -> list[str]:
        """Returns the bytes of every token as Latin-1 text; special tokens by their names."""
        names = {token: name for name, token in self.tokenizer.special_tokens.items()}
        texts = []
        for token in range(self.tokenizer.vocab_size):
            data = names[token].encode() if token in names else self._token_bytes(token)
            texts.append(data.decode("latin-1"))
        return texts

    def _token_bytes(self, token: int) -> bytes:
        try:
            return self.tokenizer.token_bytes(token)
        except ValueError:
            return b""  # an id that only pads the embedding


def _stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    with suppress(OSError), process:
        pass  # leaving the context closes the pipes and waits


def _write_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()


def _request(process: subprocess.Popen[str], line: str) -> str | None:
    """Returns the process's answer to a line; None if the process ended instead."""
    assert process.stdout is not None
    try:
        _write_line(process, line)
        answer = process.stdout.readline()
    except OSError:
        return None
    return str(json.loads(answer)) if answer else None
