"""The doctor finds this machine well, and says what is wrong where something is."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.nn import attention
from slm_fn.pipeline.planning import doctor


@pytest.fixture(scope="module")
def here():
    return doctor.examine("cpu")


def found(diagnosis, check):
    return next(finding for finding in diagnosis.findings if finding.check == check)


def test_this_machine_is_well(here):
    assert found(here, "float32 step").status == "good"
    assert found(here, "three steps twice").detail.startswith("bit-equal")
    assert found(here, "attention backends").status == "good"
    assert found(here, "decoding").detail.startswith(
        "native: logits differ from the eager engine's by "
    )
    assert {"bfloat16", "float16", "disk", "memory, cpu"} <= {
        finding.check for finding in here.findings
    }
    assert here.healthy == all(finding.status != "bad" for finding in here.findings)


def test_a_kernel_that_computes_something_else_is_named(monkeypatch):
    right = attention._attend_fused
    monkeypatch.setattr(attention, "_attend_fused", lambda q, *rest: right(q * 1.01, *rest))
    (finding,) = doctor._attention(torch.device("cpu"))
    assert finding.status == "bad"
    assert "differs from plain matmul and softmax" in finding.detail


def test_a_decoder_that_computes_something_else_is_named(monkeypatch):
    right = doctor.decoders.select

    def wrong(config, params):
        made = right(config, params)
        return made._replace(apply=lambda *args: (made.apply(*args)[0] * 1.01, None))

    monkeypatch.setattr(doctor.decoders, "select", wrong)
    (finding,) = doctor._decoding(torch.device("cpu"))
    assert finding.status == "bad"


def test_why_decoding_is_eager_is_told(monkeypatch):
    monkeypatch.setattr(
        doctor.decoders, "_native_obstacle", lambda config, params: "there is no compiler"
    )
    (finding,) = doctor._decoding(torch.device("cpu"))
    assert (finding.status, finding.detail) == ("note", "eager: there is no compiler")


def test_a_run_that_does_not_repeat_names_its_first_leaf(monkeypatch):
    turn = iter(range(2))
    right = doctor._three_steps

    def shaken(place):
        state, number = right(place), next(turn)
        params = tree.map_with_path(
            state.params, lambda path, w: w + number * 1e-7 * (path == "blocks/attn/k")
        )
        return state._replace(params=params)

    monkeypatch.setattr(doctor, "_three_steps", shaken)
    diagnosis = doctor.examine("cpu", determinism=True)
    assert not diagnosis.healthy
    (finding,) = diagnosis.findings
    assert "params/blocks/attn/k differs first" in finding.detail


def test_what_a_driver_raises_is_a_finding(monkeypatch):
    def broken(place):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(doctor, "_three_steps", broken)
    diagnosis = doctor.examine("cpu", determinism=True)
    assert diagnosis.findings[0].detail == "RuntimeError: no kernel image is available"
    assert not diagnosis.healthy


def test_differences_are_found_by_leaf():
    one = {"a": torch.ones(3), "b": {"c": torch.ones(3)}}
    near = {"a": torch.ones(3), "b": {"c": torch.ones(3) + 1e-6}}
    assert doctor.first_difference(one, one) is None
    assert doctor.first_difference(one, near)[0] == "b/c"
    assert doctor.first_difference(one, near, 1e-3) is None
    assert (
        doctor.first_difference(one, {"a": torch.ones(3) * torch.nan, "b": near["b"]}, 1e-3)[0]
        == "a"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_is_compared_too(no_shape_checks):
    (finding,) = doctor._compile(torch.device("cpu"))
    assert finding.detail.startswith("loss and every gradient within") or finding.status == "note"
