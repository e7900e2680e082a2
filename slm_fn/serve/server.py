"""The HTTP server: uvicorn with time limits for slow clients, and a gradual shutdown.

Invariant: no client keeps a connection open by neither sending nor reading; after the first SIGTERM
no request is accepted, and the process ends when the accepted ones have ended or time is up.
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
from slm_fn.serve.scheduler.worker import SHUTTING_DOWN, Phase, Worker
from slm_fn.serve.services import services_of

KEEP_ALIVE_SECONDS = 75
"""Longer than clients (5) and proxies (60) keep a connection: if the server closed it first, it
could do so just when a request is sent."""
FLUSH_SECONDS = 5  # for sending what is buffered after all replies have ended
MAX_HEAD_BYTES = 1 << 15
BACKLOG = 512

PhaseListener = Callable[[Phase], Any]


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP protocol with time limits for receiving a head and for an idle reader."""

    head_timeout: float
    send_timeout: float
    head_timer: asyncio.TimerHandle | None = None
    send_timer: asyncio.TimerHandle | None = None

    # The ignore: as in uvicorn's own protocol, the transport is narrower than asyncio's base class.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_head_timer()

    def _update_head_timer(self) -> None:
        """Starts the limit at a head's first byte or at the connection's beginning."""
        is_waiting = self.conn.their_state is h11.IDLE and not self.transport.is_closing()
        if not is_waiting and self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None
        elif is_waiting and self.head_timer is None:
            self.head_timer = self.loop.call_later(self.head_timeout, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_head_timer()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._update_head_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.send_timer = self.loop.call_later(self.send_timeout, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.send_timer is not None:
            self.send_timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self.head_timer, self.send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)


def make_protocol(config: ServeConfig) -> type[TimeoutProtocol]:
    """Returns the protocol with the limits of a server's settings."""

    class ConfiguredProtocol(TimeoutProtocol):
        head_timeout = config.head_timeout
        send_timeout = config.send_timeout

    return ConfiguredProtocol


class Server(uvicorn.Server):
    """uvicorn with a shutdown in two steps: the first signal drains, the second stops at once.

    Args:
        config: uvicorn's settings.
        worker: the worker whose jobs are drained.
        drain_timeout: seconds until jobs that have not ended are cancelled.
        on_phase: called with each new phase of the worker.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        worker: Worker,
        drain_timeout: float,
        on_phase: PhaseListener,
    ) -> None:
        super().__init__(config)
        self.worker = worker
        self.drain_timeout = drain_timeout
        self.on_phase = on_phase
        self.reported_phase = worker.phase
        self.draining_since: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drains first: the port stays open so that `/health/ready` can report it."""
        if self.draining_since is not None:
            self.should_exit = self.force_exit = True
        else:
            self.draining_since = time.monotonic()
            self.worker.drain()

    async def on_tick(self, counter: int) -> bool:
        """Reports the worker's phase and decides whether to exit; called ten times a second."""
        if self.reported_phase != self.worker.phase:
            self.reported_phase = self.worker.phase
            self.on_phase(self.reported_phase)
        if self.worker.error is not None:
            self.should_exit = True
        if self.draining_since is not None and not self.should_exit:
            is_late = time.monotonic() - self.draining_since > self.drain_timeout
            if is_late:
                self.worker.cancel_all(SHUTTING_DOWN)
            self.should_exit = is_late or not self.worker.num_active
        return await super().on_tick(counter)


def _ignore_phase(phase: Phase) -> None:
    pass


def make_server(app: Litestar, on_phase: PhaseListener = _ignore_phase, **options: Any) -> Server:
    """Returns a server of an application; call its `run` with listening sockets, or set a `port`.

    Args:
        app: what `create_app` returned.
        on_phase: called with the worker's phases: ready, then draining; or failed.
        options: settings of uvicorn that replace the defaults.
    """
    services = services_of(app)
    options = {"log_level": "warning", "server_header": False, "access_log": False, **options}
    config = uvicorn.Config(
        app,
        http=make_protocol(services.config),
        ws="none",
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        **options,
    )
    return Server(config, services.worker, services.config.drain_timeout, on_phase)


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket; with port 0 its port is known only then.

    Raises:
        ValueError: the address is in use or is not an address of this machine.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # on Windows this option would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or str(error)
        raise ValueError(
            f"cannot listen on {host}:{port}: {reason}; choose another --port or --host"
        ) from None
    return listener
