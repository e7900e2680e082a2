"""The listening side: uvicorn with a clock on slow clients, and an end that lets accepted replies end.

Invariant: no client holds a connection by sending or reading nothing; after the first SIGTERM no work is accepted,
and the process ends when the accepted work has, or when its time is up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

from slm_fn.serve.config import ServeConfig
from slm_fn.serve.worker import LEAVING, Worker

Announce = Callable[[str], Any]
KEEP_SECONDS = 75  # beyond clients' 5 and proxies' 60: who asks must close first, or asks into a connection that ends
FLUSH_SECONDS = 5  # for what is written to reach its readers, when all replies have ended


def protocol(settings: ServeConfig) -> type[H11Protocol]:
    """uvicorn's HTTP with two clocks that it lacks: on a request's head, and on a reader who does not read."""

    class Patient(H11Protocol):
        head: asyncio.TimerHandle | None = None
        stuck: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def _await_head(self) -> None:
            """A head under way has its time, counted from its first byte or from the connection's beginning."""
            waits = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
            if not waits and self.head is not None:
                self.head.cancel()
                self.head = None
            elif waits and self.head is None:
                self.head = self.loop.call_later(settings.head_timeout, self.transport.abort)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._await_head()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0]:
                self._await_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.stuck = self.loop.call_later(settings.send_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.stuck is not None:
                self.stuck.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.head, self.stuck):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return Patient


class Server(uvicorn.Server):
    """uvicorn, whose first signal begins to drain and whose second stops at once."""

    def __init__(self, config: uvicorn.Config, worker: Worker, drain_timeout: float, announce: Announce) -> None:
        super().__init__(config)
        self.worker, self.drain_timeout, self.announce = worker, drain_timeout, announce
        self.announced = worker.phase
        self.draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain first: the port stays open so that `/health/ready` can say so."""
        if self.draining_since is not None:
            self.should_exit = self.force_exit = True
        else:
            self.draining_since = time.monotonic()
            self.worker.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is there news of the worker? Has what was accepted ended, or is its time up?"""
        if self.announced != self.worker.phase:
            self.announced = self.worker.phase
            self.announce(self.announced)
        self.should_exit = self.should_exit or self.worker.error is not None
        if self.draining_since is not None and not self.should_exit:
            late = time.monotonic() - self.draining_since > self.drain_timeout
            if late:
                self.worker.end(LEAVING)
            self.should_exit = late or not self.worker.active
        return await super().on_tick(counter)


def server(app: Litestar, announce: Announce = lambda phase: None, **options: Any) -> Server:
    """A server for an application of `create_app`; `run` it on sockets that listen, or on a `port`.

    Args:
        announce: told the worker's phases as they come: ready, then draining; or failed.
    """
    settings: ServeConfig = app.state.config
    options = {"log_level": "warning", "server_header": False, "access_log": False, **options}
    config = uvicorn.Config(
        app,
        http=protocol(settings),
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        h11_max_incomplete_event_size=1 << 15,
        **options,
    )
    return Server(config, app.state.worker, settings.drain_timeout, announce)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens: only then is the port known.

    Raises:
        ValueError: the address is taken or not this machine's.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # on Windows it would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(512)
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host}:{port}: {why}; choose another --port or --host") from None
    return listener
