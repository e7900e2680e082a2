"""serve/routes/streaming.py: a stream has deltas, pings while waiting, and an end or an error."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from slm_fn.infer.sampling import SampleConfig
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.params import GenerationParams
from slm_fn.serve.protocol.responses import COMPLETION_FORMAT, OutputDelta
from slm_fn.serve.routes import streaming
from slm_fn.serve.routes.in_flight import InFlightRequest, Outcome
from slm_fn.serve.scheduler import jobs
from slm_fn.serve.scheduler.jobs import Job, OutputQueue


def stream(outputs, num_choices=1, wait_seconds=0.0, **params):
    """The events of a stream that gets `outputs`, the request's outcome, and exits of its stack."""
    exits = []

    async def run():
        queue = OutputQueue()
        scheduled = [jobs.schedule(Job(i, None, queue)) for i in range(num_choices)]
        request = InFlightRequest(
            endpoint=COMPLETION_FORMAT,
            head={},
            params=GenerationParams(SampleConfig(), 0, num_choices, **params),
            jobs=scheduled,
            outputs=queue,
            num_prompt_tokens=1,
            num_reserved_tokens=0,
            outcome=Outcome(reply_texts=[""] * num_choices),
        )
        finalization = AsyncExitStack()
        finalization.callback(exits.append, request.outcome)
        loop = asyncio.get_running_loop()
        for output in outputs:
            loop.call_later(wait_seconds, queue.put_nowait, output)
        events = streaming.stream_events({"type": "http"}, None, request, finalization)
        return [event async for event in events], request.outcome

    events, outcome = asyncio.run(run())
    return events, outcome, exits


def parse(event):
    return json.loads(event.removeprefix(b"data: "))


def test_a_stream_has_every_choice_and_ends_with_usage_and_done():
    outputs = [
        OutputDelta(1, "b", finish="length"),
        OutputDelta(0, "a"),
        OutputDelta(0, "", finish="stop"),
    ]
    events, outcome, exits = stream(outputs, num_choices=2, include_usage=True)
    *chunks, usage, done = events
    choices = [parse(chunk)["choices"][0] for chunk in chunks]
    assert [(c["index"], c["text"], c["finish_reason"]) for c in choices] == [
        (1, "b", None),
        (1, "", "length"),
        (0, "a", None),
        (0, "", "stop"),
    ]
    assert parse(usage)["choices"] == []
    assert parse(usage)["usage"]["prompt_tokens"] == 1
    assert done == b"data: [DONE]\n\n"
    assert outcome.finish == "stop"
    assert outcome.reply_texts == ["a", "b"]
    assert len(exits) == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [(ApiError(504, "late", "timeout"), "timeout"), (RuntimeError("secret"), "server_error")],
)
def test_a_failed_stream_ends_with_an_error_and_without_done(error, code):
    events, outcome, exits = stream([OutputDelta(0, "a"), error])
    assert parse(events[-1])["error"]["code"] == code
    assert b"secret" not in events[-1]
    assert outcome.finish == "failed"
    assert len(exits) == 1


def test_a_silent_stream_sends_pings(monkeypatch):
    monkeypatch.setattr(streaming, "PING_SECONDS", 0.05)
    events, _, _ = stream([OutputDelta(0, "a", finish="stop")], wait_seconds=0.3)
    assert events[0] == b": ping\n\n"
    assert events[-1] == b"data: [DONE]\n\n"


def test_a_stream_that_its_client_leaves_is_finalized_once():
    async def run():
        queue = OutputQueue()
        outcome = Outcome()
        request = InFlightRequest(
            COMPLETION_FORMAT,
            {},
            GenerationParams(SampleConfig(), 0),
            [jobs.schedule(Job(0, None, queue))],
            queue,
            1,
            0,
            outcome,
        )
        exits = []
        finalization = AsyncExitStack()
        finalization.callback(exits.append, outcome)
        queue.put_nowait(OutputDelta(0, "a"))
        events = streaming.stream_events({"type": "http"}, None, request, finalization)
        await anext(events)
        await events.aclose()
        return outcome.finish, len(exits)

    assert asyncio.run(run()) == ("cancelled", 1)
