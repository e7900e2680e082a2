"""`slm bench serve`: how a server serves many streams and shuts down, and llama.cpp for comparison.

Invariant: the server is a process of its own, reached over HTTP alone.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from slm_fn.bench.rounds import Note, no_note
from slm_fn.bench.serve import clients, process
from slm_fn.bench.serve.checks import check_exchanges, describe_problems
from slm_fn.bench.serve.clients import Exchange, HttpClients, LoadRequest
from slm_fn.bench.serve.process import ServerAddress, SlmServer
from slm_fn.bench.serve.report import LoadMeasurements, ServeReport, make_report
from slm_fn.bench.serve.requests import make_chat_request
from slm_fn.bench.serve.speed import BATCH_SIZE, ServerSpeed, measure_speed
from slm_fn.core.random import Key, fold_in
from slm_fn.pipeline import model_folder
from slm_fn.pipeline.model_folder import Model

MEMORY_WARMUP_SHARE = 0.25
"""The share of the load's duration after which memory samples count."""
SECONDS_BEFORE_STOP = 0.5
"""How long the last requests run before the server is stopped."""
NUM_HEALTH_CHECKS = 100
HEALTH_CHECK_SECONDS = 0.1
MAX_LLAMA_CPP_CONTEXT = 1024


class ServeSettings(NamedTuple):
    """The load to measure.

    Attributes:
        model: a model folder.
        num_streams: clients at a time.
        seconds: duration of the load.
        gguf: a model file for llama.cpp to serve, with as many threads; None measures no peer.
        key: draws the requests and the kinds of clients.
        num_requests: different requests; the model's reply to each is computed before the load.
        options: further options of `slm serve`.
    """

    model: Path
    num_streams: int = 64
    seconds: float = 300.0
    gguf: Path | None = None
    key: Key = 0
    num_requests: int = 32
    options: tuple[str, ...] = ()


def run(settings: ServeSettings, note: Note = no_note) -> ServeReport:
    """Measures a server's speed, puts it under load for some time and stops it under load.

    Args:
        settings: the load.
        note: gets lines on the progress and on problems.

    Raises:
        ValueError: a server did not start, or failed before the load.
    """
    model = model_folder.load(settings.model, "cpu", decode="auto")
    measured = measure(settings, model, note)
    checks = check_exchanges(measured.exchanges, measured.at_stop)
    for line in describe_problems(checks):
        note(line)
    if settings.gguf is not None:
        peer_speed = _measure_llama_cpp(settings.gguf, model, measured.threads, note)
        measured = measured._replace(peer_speed=peer_speed)
    return make_report(measured, checks)


def measure(settings: ServeSettings, model: Model, note: Note) -> LoadMeasurements:
    """Runs the load test and returns what it measured.

    Args:
        settings: the load.
        model: the model of `settings.model`, to compute the expected replies.
        note: gets lines on the progress.

    Raises:
        ValueError: the server did not start, or failed before the load.
    """
    threads = torch.get_num_threads()
    keys = [fold_in(settings.key, index) for index in range(settings.num_requests)]
    requests = [make_chat_request(model, key) for key in keys]
    note(f"computed the model's replies to {len(requests)} requests")
    max_queue = str(max(settings.num_streams, BATCH_SIZE))
    options = ("--max-queue", max_queue, *settings.options)
    with process.start_slm(settings.model, threads, options) as server:
        speed = measure_speed(server.address, model, note)
        note(f"{settings.num_streams} clients for {settings.seconds:g} s")
        exchanges, memory_bytes = asyncio.run(_run_load(server, requests, settings))
        slots_leaked = asyncio.run(_count_active_slots(server.address))
        at_stop = asyncio.run(_stop_under_load(server, requests, settings.num_streams))
        exit_status = server.process.wait(process.STOP_SECONDS)
    return LoadMeasurements(
        num_streams=settings.num_streams,
        seconds=settings.seconds,
        threads=threads,
        speed=speed,
        exchanges=exchanges,
        memory_bytes=memory_bytes,
        slots_leaked=slots_leaked,
        at_stop=at_stop,
        exit_status=exit_status,
    )


async def _run_load(
    server: SlmServer, requests: Sequence[LoadRequest], settings: ServeSettings
) -> tuple[list[Exchange], list[int]]:
    """Returns all exchanges, and samples of the server's memory after its warm-up."""
    exchanges: list[Exchange] = []
    samples: list[tuple[float, int]] = []
    started = time.monotonic()

    async def sample_memory() -> None:
        while True:
            await asyncio.sleep(min(1.0, settings.seconds / 40))
            size = await asyncio.to_thread(process.resident_bytes, server.process.pid)
            samples.append((time.monotonic() - started, size))

    sampler = asyncio.create_task(sample_memory())
    await clients.run_load(
        server.address.url,
        requests,
        settings.num_streams,
        settings.seconds,
        settings.key,
        exchanges.append,
    )
    sampler.cancel()
    warmup_seconds = MEMORY_WARMUP_SHARE * settings.seconds
    return exchanges, [size for seconds, size in samples if seconds >= warmup_seconds]


async def _count_active_slots(server: ServerAddress) -> int:
    """Returns how many slots are active without a client, after some seconds to free them."""
    num_active = 0
    async with clients.make_http_client(server.url) as client:
        for _ in range(NUM_HEALTH_CHECKS):
            num_active = (await client.get("/health")).json()["active"]
            if not num_active:
                break
            await asyncio.sleep(HEALTH_CHECK_SECONDS)
    return num_active


async def _stop_under_load(
    server: SlmServer, requests: Sequence[LoadRequest], num_streams: int
) -> list[Exchange]:
    """Starts all streams at once and stops the server while they run; returns the exchanges."""
    sent = [requests[index % len(requests)] for index in range(num_streams)]
    key = _first_key_that_reads_to_the_end()
    async with clients.make_http_client(server.address.url) as client:
        http_clients = HttpClients(client, client)
        in_flight = [
            asyncio.create_task(clients.run_client(http_clients, request, key)) for request in sent
        ]
        await asyncio.sleep(SECONDS_BEFORE_STOP)
        server.process.send_signal(signal.SIGTERM)
        results = await asyncio.gather(*in_flight)
    return [Exchange(*pair) for pair in zip(sent, results, strict=True)]


def _first_key_that_reads_to_the_end() -> Key:
    key = 0
    while clients.choose_kind(key) != "complete":
        key += 1
    return key


def _measure_llama_cpp(gguf: Path, model: Model, threads: int, note: Note) -> ServerSpeed:
    context = min(model.config.context, MAX_LLAMA_CPP_CONTEXT)
    with process.start_llama_cpp(gguf, BATCH_SIZE, threads, context) as server:
        return measure_speed(server, model, note)
