"""`slm bench serve` reports on what it measured; tests/serve/test_load.py runs it in full."""

import pytest

from slm_fn.bench.serve import benchmark, clients
from slm_fn.bench.serve.benchmark import ServeSettings
from slm_fn.bench.serve.clients import ClientResult, Exchange, LoadRequest
from slm_fn.bench.serve.report import LoadMeasurements
from slm_fn.bench.serve.speed import ServerSpeed

REQUEST = LoadRequest("/", {}, "one two", "stop", 3)
CUT = ClientResult("complete", 200, "one", None, False, 1, (0.1,))


@pytest.fixture
def measured(monkeypatch):
    """A load test that measured one stream which was cut off, without a server."""
    measurements = LoadMeasurements(
        num_streams=1,
        seconds=2.0,
        threads=1,
        speed=ServerSpeed(2.0, 8.0, 5.0),
        exchanges=[Exchange(REQUEST, CUT)],
        memory_bytes=[100],
        slots_leaked=0,
        at_stop=[],
        exit_status=0,
    )
    monkeypatch.setattr(benchmark.model_folder, "load", lambda *args, **kwargs: None)
    monkeypatch.setattr(benchmark, "measure", lambda settings, model, note: measurements)
    return measurements


def test_problems_are_noted_and_reported(measured, tmp_path):
    notes = []
    report = benchmark.run(ServeSettings(tmp_path), notes.append)
    assert report.mismatches == 1
    assert report.peer is None
    assert len(notes) == 1
    assert notes[0].startswith("1 times: got ('one', None, 1, False), expected ('one two',")


def test_llama_cpp_is_measured_if_it_has_a_model_file(measured, tmp_path, monkeypatch):
    peer_speed = ServerSpeed(1.0, 4.0, 7.0)
    monkeypatch.setattr(benchmark, "_measure_llama_cpp", lambda *args: peer_speed)
    report = benchmark.run(ServeSettings(tmp_path, gguf=tmp_path / "x.gguf"))
    assert (report.peer, report.ratio) == ("llama.cpp", 2.0)


def test_clients_at_the_stop_read_to_the_end():
    key = benchmark._first_key_that_reads_to_the_end()
    assert clients.choose_kind(key) == "complete"
