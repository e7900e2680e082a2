"""serve/worker.py: rows come from a fair line, leave when cancelled or late, and an error ends no server."""

import asyncio
import time

import pytest
from parrot import TEXT, Parrot

from slm_fn.infer import engine
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.serve.errors import ApiError
from slm_fn.serve.worker import Job, Pieces, Worker


@pytest.fixture
def worker(parrot):
    """`worker(use, rows, waiting)`: run a coroutine beside a worker that is ready, and close it."""

    def run(use, rows=2, waiting=8):
        async def inside():
            config = EngineConfig(max_batch=rows, size=parrot.config.context)
            make = lambda: engine.make(parrot.apply, parrot.init_cache, parrot.params, config)  # noqa: E731
            made = Worker(make, parrot.tokenizer.token_bytes, waiting)
            made.start()
            try:
                while made.phase == "loading":
                    await asyncio.sleep(0.002)
                assert made.phase == "ready"
                return await use(made)
            finally:
                await asyncio.to_thread(made.close)

        return asyncio.run(inside())

    return run


def job(parrot, who="", stops=(), timeout=30.0, max_tokens=200, **asked):
    asked = Request((0, 1), max_tokens=max_tokens, stop_ids=parrot.stop_ids, **asked)
    return Job(0, asked, Pieces(), stops, None, who, timeout)


async def collect(one):
    out = []
    while True:
        part = await asyncio.wait_for(one.pieces.get(), 10)
        out.append(part)
        if isinstance(part, Exception) or part.finish:
            return out


def text(parts):
    return "".join(part.text for part in parts)


def test_many_more_than_rows_all_say_what_they_should(worker, parrot):
    async def use(made):
        jobs = [job(parrot, who=str(i % 3)) for i in range(7)]
        made.submit(jobs)
        assert [text(await collect(one)) for one in jobs] == [TEXT] * 7
        assert made.active == 0

    worker(use)


def test_a_stop_string_frees_the_row_and_tells_only_tokens_before_it(worker, parrot):
    async def use(made):
        one = job(parrot, stops=("onerror",), logprobs=0)
        made.submit([one])
        parts = await collect(one)
        assert text(parts) == TEXT[: TEXT.index("onerror")]
        assert parts[-1].finish == "stop"
        told = b"".join(parrot.tokenizer.token_bytes(said.id) for part in parts for said in part.said)
        assert told.decode().startswith(text(parts))
        assert len(told) < len(text(parts)) + 8
        assert made.active == 0
        await asyncio.sleep(0.05)
        steps = Parrot.steps
        await asyncio.sleep(0.05)
        assert Parrot.steps == steps

    worker(use)


def test_who_is_late_is_told_waiting_or_not(worker, parrot):
    Parrot.delay = 0.03

    async def use(made):
        jobs = [job(parrot, timeout=0.2), job(parrot, timeout=0.2)]
        made.submit(jobs)
        for one in jobs:
            assert (await collect(one))[-1].status == 504
        assert made.active == 0

    worker(use, rows=1)


def test_a_failing_step_ends_its_generations_only(worker, parrot, monkeypatch):
    async def use(made):
        with monkeypatch.context() as broken:
            broken.setattr(Parrot, "said", (Parrot.said[0], 10**6))
            bad = job(parrot)
            made.submit([bad])
            assert isinstance((await collect(bad))[-1], Exception)
        good = job(parrot)
        made.submit([good])
        assert text(await collect(good)) == TEXT

    worker(use)


def test_all_or_none_are_queued_and_none_while_draining(worker, parrot):
    Parrot.delay = 0.02

    async def use(made):
        with pytest.raises(ApiError) as error:
            made.submit([job(parrot) for _ in range(4)])
        assert error.value.status == 400
        accepted = [job(parrot) for _ in range(2)]
        made.submit(accepted)
        with pytest.raises(ApiError) as error:
            made.submit([job(parrot) for _ in range(2)])
        assert error.value.status == 429
        assert made.active == 2
        made.drain()
        with pytest.raises(ApiError) as error:
            made.submit([job(parrot)])
        assert error.value.status == 503
        assert [text(await collect(one)) for one in accepted] == [TEXT] * 2

    worker(use, rows=1, waiting=2)


def test_a_request_that_the_engine_refuses_ends_no_other(worker, parrot):
    async def use(made):
        good, bad = job(parrot), job(parrot)
        bad.request = bad.request._replace(prompt=())
        made.submit([good])
        made.submit([bad])
        assert isinstance((await collect(bad))[-1], ValueError)
        assert text(await collect(good)) == TEXT

    worker(use)


def test_one_client_fills_no_line(worker, parrot):
    Parrot.delay = 0.005

    async def use(made):
        made.submit([job(parrot, "greedy") for _ in range(3)])
        with pytest.raises(ApiError) as error:
            made.submit([job(parrot, "greedy")])
        assert error.value.status == 429
        for who in ("ada", "bob"):
            made.submit([job(parrot, who)])
        with pytest.raises(ApiError) as error:
            made.submit([job(parrot, "cyd")])
        assert error.value.status == 429, "the line of the others has an end as well"

    worker(use, rows=1, waiting=2)


def test_a_chatty_client_does_not_hold_up_another(worker, parrot):
    async def use(made):
        many = [job(parrot, "chatty") for _ in range(5)]
        made.submit(many)
        late = job(parrot, "quiet")
        made.submit([late])
        ended = {}

        async def watch(name, one):
            await collect(one)
            ended[name] = time.monotonic()

        await asyncio.gather(watch("quiet", late), *(watch(i, one) for i, one in enumerate(many)))
        assert ended["quiet"] < ended[2]

    Parrot.delay = 0.002
    worker(use, rows=1)
