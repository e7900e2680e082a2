"""serve/scheduler/worker.py, jobs.py: slots are filled fairly and freed; errors end one job."""

import asyncio

import pytest
from scripted_model import TEXT, ScriptedModel

from slm_fn.infer import engine
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.scheduler.jobs import Job, OutputQueue
from slm_fn.serve.scheduler.worker import Worker


@pytest.fixture
def with_worker(scripted_model):
    """`with_worker(use)`: run the coroutine `use(worker)` with a ready worker, and close it."""
    model = scripted_model

    def run(use, num_slots=2, max_queue=8):
        def make_engine():
            config = EngineConfig(max_batch=num_slots, context=model.config.context)
            return engine.make(model.decoder, config)

        async def inside():
            worker = Worker(make_engine, model.tokenizer.token_bytes, max_queue)
            worker.start()
            try:
                while worker.phase == "loading":
                    await asyncio.sleep(0.002)
                assert worker.phase == "ready"
                return await use(worker)
            finally:
                await asyncio.to_thread(worker.close)

        return asyncio.run(inside())

    return run


def make_job(model, client_id="", stops=(), timeout=300.0, **request_fields):
    fields = {"max_tokens": 200, "stop_ids": model.stop_ids, **request_fields}
    request = Request((0, 1), **fields)
    return Job(0, request, OutputQueue(), stops, None, client_id, timeout)


async def collect(job):
    outputs = []
    while True:
        output = await asyncio.wait_for(job.outputs.get(), 120)
        outputs.append(output)
        if isinstance(output, Exception) or output.finish:
            return outputs


async def collect_text(job):
    return joined_text(await collect(job))


def joined_text(deltas):
    return "".join(delta.text for delta in deltas)


def test_more_jobs_than_slots_all_get_their_reply(with_worker, scripted_model):
    async def use(worker):
        jobs = [make_job(scripted_model, client_id=str(i % 3)) for i in range(7)]
        worker.submit(jobs)
        assert [await collect_text(job) for job in jobs] == [TEXT] * 7
        assert worker.num_active == 0

    with_worker(use)


def test_a_stop_string_frees_the_slot_and_only_tokens_before_it_are_sent(
    with_worker, scripted_model
):
    async def use(worker):
        job = make_job(scripted_model, stops=("onerror",), logprobs=0)
        worker.submit([job])
        deltas = await collect(job)
        text = joined_text(deltas)
        assert text == TEXT[: TEXT.index("onerror")]
        assert deltas[-1].finish == "stop"
        tokens = [each.id for delta in deltas for each in delta.logprobs]
        token_bytes = b"".join(scripted_model.tokenizer.token_bytes(token) for token in tokens)
        assert token_bytes.decode().startswith(text)
        assert len(token_bytes) < len(text) + 8
        assert worker.num_active == 0
        await asyncio.sleep(0.05)
        num_steps = ScriptedModel.num_steps
        await asyncio.sleep(0.05)
        assert ScriptedModel.num_steps == num_steps

    with_worker(use)


def test_a_late_job_gets_504_in_the_queue_and_in_the_batch(with_worker, scripted_model):
    ScriptedModel.seconds_per_step = 0.03

    async def use(worker):
        jobs = [make_job(scripted_model, timeout=0.2), make_job(scripted_model, timeout=0.2)]
        worker.submit(jobs)
        for job in jobs:
            assert (await collect(job))[-1].status == 504
        assert worker.num_active == 0

    with_worker(use, num_slots=1)


def test_a_failing_step_ends_its_own_jobs_only(with_worker, scripted_model, monkeypatch):
    async def use(worker):
        with monkeypatch.context() as patch:
            patch.setattr(ScriptedModel, "reply_ids", (ScriptedModel.reply_ids[0], 10**6))
            failing = make_job(scripted_model)
            worker.submit([failing])
            assert isinstance((await collect(failing))[-1], Exception)
        succeeding = make_job(scripted_model)
        worker.submit([succeeding])
        assert await collect_text(succeeding) == TEXT

    with_worker(use)


def rejection(worker, jobs):
    with pytest.raises(ApiError) as error:
        worker.submit(jobs)
    return error.value


def test_all_jobs_or_none_are_queued_and_none_while_draining(with_worker, scripted_model):
    ScriptedModel.seconds_per_step = 0.02

    async def use(worker):
        assert rejection(worker, [make_job(scripted_model) for _ in range(4)]).status == 400
        accepted = [make_job(scripted_model) for _ in range(2)]
        worker.submit(accepted)
        assert rejection(worker, [make_job(scripted_model) for _ in range(2)]).status == 429
        assert worker.num_active == 2
        worker.drain()
        assert rejection(worker, [make_job(scripted_model)]).status == 503
        assert [await collect_text(job) for job in accepted] == [TEXT] * 2

    with_worker(use, num_slots=1, max_queue=2)


def test_a_request_that_the_engine_rejects_ends_no_other(with_worker, scripted_model):
    async def use(worker):
        valid = make_job(scripted_model)
        invalid = make_job(scripted_model)
        invalid = invalid._replace(request=invalid.request._replace(prompt=()))
        worker.submit([valid])
        worker.submit([invalid])
        assert isinstance((await collect(invalid))[-1], ValueError)
        assert await collect_text(valid) == TEXT

    with_worker(use)


def test_one_client_alone_does_not_fill_the_queue(with_worker, scripted_model):
    ScriptedModel.seconds_per_step = 0.005

    async def use(worker):
        worker.submit([make_job(scripted_model, "greedy") for _ in range(3)])
        assert rejection(worker, [make_job(scripted_model, "greedy")]).status == 429
        for client_id in ("ada", "bob"):
            worker.submit([make_job(scripted_model, client_id)])
        error = rejection(worker, [make_job(scripted_model, "cyd")])
        assert error.status == 429, "the room for other clients is limited as well"

    with_worker(use, num_slots=1, max_queue=2)


def test_a_client_with_many_jobs_does_not_delay_another(with_worker, scripted_model):
    async def use(worker):
        many = [make_job(scripted_model, "busy") for _ in range(5)]
        worker.submit(many)
        late = make_job(scripted_model, "quiet")
        worker.submit([late])
        ended = []

        async def record_end(name, job):
            await collect(job)
            ended.append(name)

        of_busy = [record_end(i, job) for i, job in enumerate(many)]
        await asyncio.gather(record_end("quiet", late), *of_busy)
        assert ended.index("quiet") < ended.index(2)

    ScriptedModel.seconds_per_step = 0.002
    with_worker(use, num_slots=1)
