"""serve/scheduler/sandbox_process.py: a process that ended is replaced; a kill is an error."""

import threading

import pytest

from slm_fn.infer import constraints
from slm_fn.infer.constraints import Grammar
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.scheduler.sandbox_process import SandboxProcess

RULES = constraints.to_llguidance(Grammar("regex", "a+"))


@pytest.fixture
def sandbox(scripted_model):
    made = SandboxProcess(scripted_model.tokenizer, scripted_model.stop_ids, timeout_seconds=30.0)
    yield made
    made.kill()
    made.wait()


def test_a_process_that_ended_is_replaced(sandbox):
    sandbox.check(RULES)
    first = sandbox.process
    first.kill()
    first.wait(10)
    sandbox.check(RULES)
    assert sandbox.process is not first


def test_a_check_that_the_kill_interrupts_reports_the_shutdown(sandbox):
    sandbox.check(RULES)
    slow = Grammar("json_schema", {"type": "integer", "multipleOf": 99999989})
    timer = threading.Timer(0.2, sandbox.kill)
    timer.start()
    with pytest.raises(ApiError) as error:
        sandbox.check(constraints.to_llguidance(slow))
    timer.join()
    assert error.value.status == 503
