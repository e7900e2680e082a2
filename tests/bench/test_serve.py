"""bench/serve.py: requests that can be asked again, and a report that sees what went wrong."""

import pytest

from slm_fn.bench import serve
from slm_fn.bench.load import Heard, Task
from slm_fn.bench.serve import Pace
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.model import Generation, Model
from slm_fn.text import bpe

TASK = Task("/", {}, "one two", "stop", 3)
GOOD = Heard("polite", 200, "one two", "stop", True, 3, (0.1, 0.3))
FIGURES = ("errors", "mismatches", "cut_at_stop", "completed", "left", "refused", "told_to_wait")


def figures(*heard, last=()):
    notes = []
    report = serve._report(
        [(TASK, one) for one in heard], [100] * 9, [(TASK, one) for one in last], Pace(2.0, 8.0, 5.0), 2.0, notes.append
    )
    return {name: report[name] for name in FIGURES if report[name]}, report, notes


def test_requests_are_what_the_model_says_to_them(rough):
    tokenizer = bpe.train(["to be or not to be"] * 3, vocab_size=270)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=2, num_kv_heads=1, ffn_dim=32, context=96
    )
    model = Model(config, rough(config), tokenizer, Generation())
    tasks = [serve.make_task(model, key) for key in range(6)]
    assert tasks[:2] == [serve.make_task(model, key) for key in range(2)]
    assert len({task.text for task in tasks}) > 3
    assert all(0 < task.num_tokens <= task.body["max_tokens"] and task.finish in ("stop", "length") for task in tasks)


def test_a_good_run_has_nothing_to_tell():
    bad = Heard("malformed", 400), Heard("oversized", 413), Heard("half", 400)
    left = GOOD._replace(kind="leaving", text="one", done=False, finish=None, num_tokens=0)
    found, report, notes = figures(GOOD, left, GOOD._replace(kind="slow", times=(9.0,)), *bad, last=[GOOD])
    assert found == {"completed": 2, "left": 1, "refused": 3}
    assert not notes
    assert report["ended_at_stop"] == 1
    assert report["rss_growth_share"] == 0
    assert (report["ttft_p50_ms"], report["inter_token_p95_ms"]) == (100, pytest.approx(200))
    assert (report["tok_per_s"], report["eight_ratio"]) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("heard", "found"),
    [
        (GOOD._replace(text="one too"), {"mismatches": 1, "completed": 1}),
        (GOOD._replace(done=False), {"mismatches": 1, "left": 1}),
        (GOOD._replace(error="failed", done=False), {"errors": 1, "left": 1}),
        (Heard("polite", 500), {"errors": 1}),
        (Heard("slow", 0, error="ReadError"), {"errors": 1}),
        (Heard("malformed", 500), {"errors": 1, "refused": 1}),
        (Heard("malformed", 200), {"errors": 1, "refused": 1}),
        (Heard("polite", 429, error="later"), {"told_to_wait": 1}),
    ],
)
def test_what_went_wrong_is_counted_and_told(heard, found):
    counted, _, notes = figures(heard)
    assert counted == found
    assert len(notes) == ("errors" in found) + ("mismatches" in found)


def test_memory_that_grows_is_seen():
    report = serve._report([], [100, 100, 103, 104, 105, 110], [], Pace(1, 1, 1), 1.0, print)
    assert report["rss_growth_share"] == pytest.approx(0.1)


def test_a_stream_cut_at_the_end_is_counted():
    cut = GOOD._replace(text="one", finish=None, done=False)
    assert figures(last=[GOOD, cut, Heard("polite", 503)])[0] == {"cut_at_stop": 1}
