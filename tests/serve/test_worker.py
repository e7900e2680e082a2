"""serve/worker.py: generations take turns, end when cancelled, and an error in one leaves the others alone."""

import asyncio
from collections.abc import Iterator

import pytest

from slm_fn.infer.stream import Piece
from slm_fn.serve.protocol import ApiError
from slm_fn.serve.worker import Job, Worker


def say(name: str, words: int, order: list[str]) -> Iterator[Piece]:
    for i in range(words):
        order.append(name)
        yield Piece(name, i + 1, "stop" if i + 1 == words else None)


async def collect(job: Job) -> list[Piece | Exception]:
    out: list[Piece | Exception] = []
    while True:
        piece = await asyncio.wait_for(job.pieces.get(), 10)
        out.append(piece)
        if isinstance(piece, Exception) or piece.finish:
            return out


def test_two_take_turns_and_a_third_waits():
    async def run() -> list[str]:
        order: list[str] = []
        worker = Worker(max_active=2, max_waiting=4)
        jobs = [Job(lambda name=name: say(name, 5, order)) for name in "abc"]
        for job in jobs:
            worker.submit(job)
        assert worker.active == 3
        worker.start()
        for job in jobs:
            assert len(await collect(job)) == 5
        worker.close()
        return order

    order = asyncio.run(run())
    assert order[:10] == ["a", "b"] * 5
    assert order[10:] == ["c"] * 5


def test_an_error_ends_its_own_generation_only():
    def fail() -> Iterator[Piece]:
        yield Piece("x", 1)
        raise RuntimeError("broken")

    async def run() -> None:
        worker = Worker()
        worker.start()
        bad, good = Job(fail), Job(lambda: say("a", 3, []))
        worker.submit(bad)
        worker.submit(good)
        assert isinstance((await collect(bad))[-1], RuntimeError)
        assert len(await collect(good)) == 3
        worker.close()

    asyncio.run(run())


def test_a_cancelled_generation_is_not_asked_again():
    async def run() -> list[str]:
        order: list[str] = []
        worker = Worker()
        job = Job(lambda: say("a", 1_000_000, order))
        worker.start()
        worker.submit(job)
        await asyncio.wait_for(job.pieces.get(), 10)
        job.cancelled.set()
        while worker.active:
            await asyncio.sleep(0.01)
        seen = len(order)
        await asyncio.sleep(0.05)
        assert len(order) == seen
        worker.close()
        return order

    assert len(asyncio.run(run())) < 1_000_000


def test_a_full_queue_is_429():
    async def run() -> None:
        worker = Worker(max_active=1, max_waiting=1)
        for _ in range(2):
            worker.submit(Job(lambda: say("a", 1, [])))
        with pytest.raises(ApiError) as error:
            worker.submit(Job(lambda: say("a", 1, [])))
        assert error.value.status == 429

    asyncio.run(run())
