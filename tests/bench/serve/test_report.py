"""The report of `slm bench serve` counts what went wrong."""

import msgspec
import pytest

from slm_fn.bench.serve import report as reports
from slm_fn.bench.serve.checks import check_exchanges, describe_problems
from slm_fn.bench.serve.clients import ClientResult, Exchange, LoadRequest
from slm_fn.bench.serve.report import LoadMeasurements
from slm_fn.bench.serve.speed import ServerSpeed

REQUEST = LoadRequest("/", {}, "one two", "stop", 3)
GOOD = ClientResult("complete", 200, "one two", "stop", True, 3, (0.1, 0.3))
COUNTS = (
    "errors",
    "mismatches",
    "cut_at_stop",
    "completed",
    "disconnected",
    "invalid_requests",
    "rate_limited",
)
MEASURED = LoadMeasurements(
    num_streams=4,
    seconds=2.0,
    threads=1,
    speed=ServerSpeed(2.0, 8.0, 5.0),
    exchanges=[],
    memory_bytes=[100] * 9,
    slots_leaked=0,
    at_stop=[],
    exit_status=0,
)


def report_of(*results, at_stop=()):
    """Returns the counts that are not 0, the report, and the lines on problems."""
    exchanges = [Exchange(REQUEST, result) for result in results]
    last = [Exchange(REQUEST, result) for result in at_stop]
    checks = check_exchanges(exchanges, last)
    report = reports.make_report(MEASURED._replace(exchanges=exchanges, at_stop=last), checks)
    counts = {name: getattr(report, name) for name in COUNTS}
    nonzero = {name: count for name, count in counts.items() if count}
    return nonzero, report, describe_problems(checks)


def test_a_good_run_has_no_problems():
    invalid = [
        ClientResult("malformed", 400),
        ClientResult("oversized", 413),
        ClientResult("truncated", 400),
    ]
    disconnected = GOOD._replace(
        kind="disconnecting", text="one", is_done=False, finish=None, num_tokens=0
    )
    slow = GOOD._replace(kind="slow", delta_seconds=(9.0,))
    counts, report, problems = report_of(GOOD, disconnected, slow, *invalid, at_stop=[GOOD])
    assert counts == {"completed": 2, "disconnected": 1, "invalid_requests": 3}
    assert not problems
    assert report.completed_at_stop == 1
    assert report.rss_growth_share == 0
    assert (report.ttft_p50_ms, report.inter_token_p95_ms) == (100, pytest.approx(200))
    assert (report.tok_per_s, report.batch8_speedup) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (GOOD._replace(text="one too"), {"mismatches": 1, "completed": 1}),
        (GOOD._replace(is_done=False), {"mismatches": 1, "disconnected": 1}),
        (GOOD._replace(error="failed", is_done=False), {"errors": 1, "disconnected": 1}),
        (ClientResult("complete", 500), {"errors": 1}),
        (ClientResult("slow", 0, error="ReadError"), {"errors": 1}),
        (ClientResult("malformed", 500), {"errors": 1, "invalid_requests": 1}),
        (ClientResult("malformed", 200), {"errors": 1, "invalid_requests": 1}),
        (ClientResult("complete", 429, error="later"), {"rate_limited": 1}),
    ],
)
def test_problems_are_counted_and_described(result, expected):
    counts, _, problems = report_of(result)
    assert counts == expected
    assert len(problems) == ("errors" in expected) + ("mismatches" in expected)


def test_memory_growth_is_reported():
    measured = MEASURED._replace(memory_bytes=[100, 100, 103, 104, 105, 110])
    report = reports.make_report(measured, check_exchanges([], []))
    assert report.rss_growth_share == pytest.approx(0.1)


def test_a_stream_cut_at_the_stop_is_counted():
    cut = GOOD._replace(text="one", finish=None, is_done=False)
    counts, _, _ = report_of(at_stop=[GOOD, cut, ClientResult("complete", 503)])
    assert counts == {"cut_at_stop": 1}


def test_json_keys_that_scripts_read_stay():
    keys = msgspec.to_builtins(report_of(GOOD)[1]).keys()
    assert {"left", "refused", "told_to_wait", "rows_leaked", "ended_at_stop"} <= keys
    assert {"one_tok_per_s", "eight_tok_per_s", "eight_ratio", "eight_ttft_p50_ms"} <= keys
    assert {"peer_one_tok_per_s", "peer_eight_tok_per_s", "peer_eight_ttft_p50_ms"} <= keys


def test_a_peer_is_compared_by_eight_requests_at_once():
    measured = MEASURED._replace(peer_speed=ServerSpeed(1.0, 4.0, 7.0))
    report = reports.make_report(measured, check_exchanges([], []))
    assert (report.peer, report.ratio, report.peer_batch8_ttft_p50_ms) == ("llama.cpp", 2.0, 7.0)
    assert ["ratio", 2.0] in reports.rows(report)
    assert ["exit_status", 0] in reports.rows(report)
