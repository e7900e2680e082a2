"""serve/routes/in_flight.py: however a request ends, it is finalized once."""

import asyncio

import pytest
from litestar import Request

from slm_fn.infer.sampling import SampleConfig
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.middleware import access_log
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.params import GenerationParams
from slm_fn.serve.protocol.prompts import TokenizedPrompt
from slm_fn.serve.protocol.responses import CHAT_FORMAT
from slm_fn.serve.routes.in_flight import GenerationInput, in_flight
from slm_fn.serve.services import make_services

CLIENT = "address 1.2.3.4"
NUM_PROMPT_TOKENS = 3
GENERATION = GenerationInput(
    GenerationParams(SampleConfig(), seed=1, num_choices=2, max_tokens=10),
    [TokenizedPrompt([1, 2, 3])],
)


@pytest.fixture
def services(scripted_model):
    """Services whose worker accepts jobs and does not run."""
    made = make_services(scripted_model, ServeConfig(tokens_per_minute=1000, max_queue=2))
    made.worker.phase = "ready"
    made.token_budget.clock = lambda: 0.0
    yield made
    made.grammars.close()


@pytest.fixture
def http_request():
    return Request({"type": "http", "headers": [], "client": ("1.2.3.4", 5)})


def run_in_flight(services, http_request, act):
    async def run():
        async with in_flight(services, http_request, CHAT_FORMAT, GENERATION) as request:
            act(request)

    asyncio.run(run())


def test_each_choice_is_a_job_with_a_seed_of_its_own(services, http_request):
    def act(request):
        jobs = [scheduled.job for scheduled in request.jobs]
        assert [job.choice_index for job in jobs] == [0, 1]
        assert jobs[0].request.seed == 1
        assert jobs[1].request.seed != 1
        assert services.worker.num_active == 2
        assert services.token_budget.available(CLIENT) == 1000 - NUM_PROMPT_TOKENS - 2 * 10

    run_in_flight(services, http_request, act)


@pytest.mark.parametrize("error", [None, ApiError(499, "left"), asyncio.CancelledError()])
def test_on_exit_jobs_are_cancelled_and_unused_tokens_returned(services, http_request, error):
    requests = []

    def act(request):
        requests.append(request)
        request.jobs[0].progress.num_tokens = 4
        if error is not None:
            raise error
        request.outcome.finish = "stop"

    if error is None:
        run_in_flight(services, http_request, act)
    else:
        with pytest.raises(type(error)):
            run_in_flight(services, http_request, act)
    assert all(scheduled.is_cancelled for scheduled in requests[0].jobs)
    assert services.worker.num_active == 0
    assert services.token_budget.available(CLIENT) == 1000 - NUM_PROMPT_TOKENS - 4
    record = access_log.get_record(http_request.scope)
    assert record["prompt_tokens"] == NUM_PROMPT_TOKENS
    assert record["completion_tokens"] == 4
    assert record["finish"] == ("cancelled" if error else "stop")


def test_a_rejected_request_costs_no_tokens(services, http_request):
    services.worker.drain()
    with pytest.raises(ApiError) as rejection:
        run_in_flight(services, http_request, lambda request: None)
    assert rejection.value.status == 503
    assert services.token_budget.available(CLIENT) == 1000
