"""`slm bench train` trains in processes of their own, and its figures agree with each other."""

import pytest
import torch

from slm_fn.bench.train import benchmark
from slm_fn.bench.train import report as reports
from slm_fn.bench.train.peers import TrainPeer
from slm_fn.bench.train.timing import StepTiming, StepWorkload
from slm_fn.nn import gpt

SMALL = [
    "model.dim=32",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=2",
    "model.ffn_dim=64",
]
TINY = benchmark.resolve_config(
    None, [*SMALL, "model.vocab_size=64"], precision="float32", batch_size=2, context=16
)


@pytest.mark.filterwarnings("ignore")
def test_figures_of_one_run_agree() -> None:
    notes: list[str] = []
    peer = TrainPeer("plain", "float32", False)
    report = benchmark.run(TINY, "cpu", 2, 1, [peer], notes.append)
    assert report.params == gpt.count_params(TINY.model)
    assert report.flop_per_s == report.tok_per_s * gpt.train_flops_per_token(TINY.model, 16)
    assert report.matmul_share == pytest.approx(report.flop_per_s / report.matmul_flop_per_s)
    assert report.peak_memory_mib > 100  # of the whole process, with its interpreter and torch
    assert report.peers is not None
    assert report.ratio == report.peers[0].ratio == report.tok_per_s / report.peers[0].tok_per_s
    assert report.peer == "plain float32 eager"
    assert 0 <= report.data_stall_share < 1
    assert report.first_loss < 1.1 * torch.tensor(64.0).log().item()
    assert report.tok_per_s == pytest.approx(
        float(reports.rows(report)[0][1].split()[0].replace(",", "")), abs=1
    )
    assert reports.peer_rows(report)[0][-1] == f"{report.ratio:.2f} x"
    assert [line.partition(",")[0] for line in notes] == ["slm", "plain float32 eager"]


def test_the_ratio_is_that_to_the_fastest_peer() -> None:
    def timing(tok_per_s: float, peak_memory_mib: float) -> StepTiming:
        return StepTiming(tok_per_s, peak_memory_mib, 0.0, 0.0, 4.0, 3.0, 1e9, "eager")

    timings = {
        "slm": [timing(10, 1), timing(20, 2), timing(40, 3)],
        "slow": [timing(1, 5)] * 3,
        "fast": [timing(5, 7), timing(5, 7), timing(80, 9)],
    }
    report = reports.make_report(TINY, StepWorkload(64, 2, 16, 2, "cpu"), timings)
    assert (report.peer, report.peer_tok_per_s, report.peer_peak_memory_mib) == ("fast", 5, 7)
    assert report.ratio == 2  # of 10/5, 20/5 and 40/80
    assert report.tok_per_s == 20
    assert [peer.ratio for peer in report.peers or []] == [20, 2]


def test_the_default_is_the_model_of_the_recorded_figures() -> None:
    assert gpt.count_params(benchmark.DEFAULT_MODEL) == 13_767_552
    # The vocabulary size of its tokenizer's section.
    assert benchmark.resolve_config("tiny").model.vocab_size == 4096
