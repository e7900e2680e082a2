"""Engines: the choice states its reason, and neither compiling nor capturing changes a number."""

from functools import partial

import pytest
import torch

from slm_fn.core import device, tree
from slm_fn.core.jit import (
    MIN_FLOPS_TO_COMPILE,
    capture,
    choose_engine,
    configure_compiler,
    donate,
    jit,
)
from slm_fn.core.types import TrainState

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_eager_is_the_function_itself():
    assert jit("eager")(abs) is abs


@pytest.mark.parametrize("engine", ["compile", "graph"])
def test_compile_is_torch_compile(engine):
    compiled = jit(engine)(lambda x: x + 1)
    assert compiled._torchdynamo_orig_callable(torch.ones(1)) == 2


def test_an_unknown_engine_is_named(no_shape_checks):
    with pytest.raises(ValueError, match="'jax' is not one of eager, compile"):
        jit("jax")
    with pytest.raises(ValueError, match="'jax' is not one of auto, eager, compile, graph"):
        choose_engine("jax", CPU)


@pytest.fixture
def compiler(monkeypatch):
    """A machine that lacks nothing: on it the rules alone decide."""
    monkeypatch.setattr(device, "compile_obstacle", lambda device: "")


@pytest.mark.usefixtures("compiler")
def test_auto_takes_what_pays():
    assert choose_engine("auto", CPU, MIN_FLOPS_TO_COMPILE / 2).engine == "eager"
    assert choose_engine("auto", CPU, MIN_FLOPS_TO_COMPILE * 2).engine == "compile"
    assert choose_engine("auto", GPU, 1).engine == "graph"
    assert choose_engine("auto", GPU, 1, num_processes=2).engine == "compile"
    assert "4e+14 operations" in choose_engine("auto", CPU, MIN_FLOPS_TO_COMPILE * 2).reason


def test_without_a_compiler_auto_is_eager_and_says_so(monkeypatch):
    monkeypatch.setattr(device, "compile_obstacle", lambda device: "no compiler")
    assert choose_engine("auto", CPU) == ("eager", "no compiler")
    with pytest.raises(ValueError, match="cannot compile here: no compiler"):
        choose_engine("compile", CPU)


@pytest.mark.usefixtures("compiler")
def test_a_graph_is_refused_where_there_is_none():
    with pytest.raises(ValueError, match="cpu does not; use compile or auto"):
        choose_engine("graph", CPU)
    with pytest.raises(ValueError, match="one process"):
        choose_engine("graph", GPU, num_processes=2)


def test_a_compiler_on_the_path_is_enough(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(device.platform, "system", lambda: "Linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no C++ compiler" in device.compile_obstacle(CPU)
    (tmp_path / "g++").write_text("")
    (tmp_path / "g++").chmod(0o755)
    assert device.compile_obstacle(CPU) == ""
    monkeypatch.setattr(device.platform, "system", lambda: "Darwin")
    assert "NaN" in device.compile_obstacle(CPU)


def step(state, batch):
    params = tree.map(lambda w: w + batch["x"].sum(), state.params)
    return TrainState(params, (state.opt_state[0] + 1,), state.step + 1), {
        "loss": params["w"].sum()
    }


def begin():
    return TrainState({"w": torch.zeros(2)}, (torch.zeros(()),), torch.tensor(0))


def batches():
    return [{"x": torch.full((rows,), float(i))} for i, rows in enumerate([3, 3, 2, 3, 2])]


@pytest.mark.parametrize("lift", [lambda step: step, donate], ids=["pure", "donated"])
def test_a_captured_step_is_the_step(lift, same):
    captured, own, donated = capture(lift(step)), begin(), begin()
    captured_metrics = []
    expected_metrics = []
    for batch in batches():
        own, metrics = step(own, batch)
        donated, metrics_too = captured(donated, batch)
        expected_metrics.append(metrics)
        captured_metrics.append(metrics_too)
        assert same(donated, own)
    assert same(captured_metrics, expected_metrics)  # each call's metrics are its own


def test_a_captured_step_writes_over_its_state_and_leaves_a_stranger_s_alone(same):
    captured, first = capture(step), begin()
    state, _ = captured(first, batches()[0])
    again, _ = captured(state, batches()[1])
    assert again is state
    assert same(first, begin())
    back, _ = captured(first, batches()[1])  # a restored state is copied in
    assert same(back, step(begin(), batches()[1])[0])


def test_a_donated_state_is_written_over(same):
    own, donated = begin(), begin()
    buffers = tree.leaves(donated)
    after, metrics = donate(step)(donated, batches()[1])
    expected, expected_metrics = step(own, batches()[1])
    assert after is donated
    assert all(a is b for a, b in zip(tree.leaves(after), buffers, strict=True))
    assert same((after, metrics), (expected, expected_metrics))


def test_one_recording_for_each_shape(monkeypatch):
    recorded = []
    monkeypatch.setattr(device, "graph_pool", lambda device: object())
    monkeypatch.setattr(
        device, "capture_graph", lambda device, work, pool: recorded.append(pool) or work
    )
    captured, state = capture(step), begin()
    for batch in batches():
        state, _ = captured(state, batch)
    assert len(recorded) == 2
    assert recorded[0] is recorded[1]  # and one memory for all


def times(text, x):
    return x * len(text)


@pytest.mark.usefixtures("no_shape_checks")
def test_the_twentieth_model_of_a_process_is_compiled_too(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    configure_compiler()
    torch._dynamo.utils.counters.clear()
    for n in range(20):
        assert jit("compile")(partial(times, n * "x"))(torch.ones(())) == n
    assert torch._dynamo.utils.counters["frames"]["ok"] == 20
