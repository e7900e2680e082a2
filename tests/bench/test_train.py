"""The bench trains in processes of their own, and its figures belong together."""

import pytest
import torch

from slm_fn.bench import peers, train
from slm_fn.bench.pace import Pace, Work, pace, tokens_at
from slm_fn.bench.peers import Decoder, Peer, Size
from slm_fn.nn import gpt

SMALL = ["model.dim=32", "model.num_layers=1", "model.num_heads=2", "model.num_kv_heads=2", "model.ffn_dim=64"]
TINY = train.choose(None, [*SMALL, "model.vocab_size=64"], precision="float32", batch_size=2, context=16)


@pytest.mark.filterwarnings("ignore")
def test_figures_of_one_run_belong_together() -> None:
    notes: list[str] = []
    report = train.run(TINY, "cpu", 2, 1, [Peer("plain", "float32", False)], notes.append)
    assert report.params == gpt.count(TINY.model)
    assert report.flop_per_s == report.tok_per_s * gpt.flops(TINY.model, 16)
    assert report.matmul_share == pytest.approx(report.flop_per_s / report.matmul_flop_per_s)
    assert report.peak_memory_mib > 100  # the whole process, with its interpreter and torch
    assert report.peers is not None
    assert report.ratio == report.peers[0].ratio == report.tok_per_s / report.peers[0].tok_per_s
    assert report.peer == "plain float32 eager"
    assert 0 <= report.data_stall_share < 1
    assert report.first_loss < 1.1 * torch.tensor(64.0).log().item()
    assert report.tok_per_s == pytest.approx(float(train.rows(report)[0][1].split()[0].replace(",", "")), abs=1)
    assert train.peer_rows(report)[0][-1] == f"{report.ratio:.2f} x"
    assert [line.partition(",")[0] for line in notes] == ["slm", "plain float32 eager"]


def test_the_fastest_peer_is_the_one_to_beat() -> None:
    def round_of(rate: float, mib: float) -> Pace:
        return Pace(rate, mib, 0.0, 0.0, 4.0, 3.0, 1e9, "eager")

    paces = {
        "slm": [round_of(10, 1), round_of(20, 2), round_of(40, 3)],
        "slow": [round_of(1, 5)] * 3,
        "fast": [round_of(5, 7), round_of(5, 7), round_of(80, 9)],
    }
    report = train._report(TINY, Work(64, 2, 16, 2, "cpu"), paces)
    assert (report.peer, report.peer_tok_per_s, report.peer_peak_memory_mib) == ("fast", 5, 7)
    assert report.ratio == 2  # of 10/5, 20/5 and 40/80
    assert report.tok_per_s == 20
    assert [peer.ratio for peer in report.peers or []] == [20, 2]


def test_the_default_is_the_model_of_the_figures_on_record() -> None:
    assert gpt.count(train.SHAPE) == 13_767_552
    assert train.choose("tiny").model.vocab_size == 4096  # its tokenizer's


def test_the_clock_runs_over_the_timed_steps_alone() -> None:
    work, seen = Work(8, 2, 4, 3, "cpu", warmup=2), []

    def step(batch: int) -> torch.Tensor:
        seen.append(batch)
        return torch.tensor(float(batch))

    found = pace(step, iter(range(5)), work)
    assert seen == [0, 1, 2, 3, 4]
    assert (found.first_loss, found.loss) == (0, 4)


def test_everyone_sees_the_same_tokens() -> None:
    work = Work(100, 4, 50, 1, "cpu")
    assert (tokens_at(work, 3) == tokens_at(work, 3)).all()
    assert (tokens_at(work, 3) != tokens_at(work, 4)).any()
    drawn = tokens_at(work, 0)
    assert drawn.shape == (4, 51)
    assert 0 <= drawn.min() < drawn.max() < 100
    assert drawn.mean() < 35  # low ids more often: there is something to learn


def test_peers_have_our_number_of_parameters_up_to_their_norms() -> None:
    shape, work = TINY.model, Work(64, 2, 16, 2, "cpu")
    size = Size(shape.dim, shape.num_layers, shape.num_heads, shape.num_kv_heads, shape.ffn_dim, shape.tied)
    plain = Decoder(size, work)
    assert sum(p.numel() for p in plain.parameters()) == gpt.count(shape)
    _, llama = peers._llama(size, work)
    assert sum(p.numel() for p in llama.parameters()) == gpt.count(shape)


def test_the_plain_peer_is_causal() -> None:
    model = Decoder(Size(32, 2, 4, 2, 64, False), Work(64, 1, 8, 1, "cpu"))
    tokens = torch.arange(8)[None]
    before, after = model(tokens), model(torch.cat([tokens[:, :5], tokens[:, 5:] + 9], 1))
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-6)


def test_transformers_runs_as_people_run_it() -> None:
    ways = [(peer.precision, peer.compiled) for peer in peers.lineup("transformers")]
    assert ways == [("float32", False), ("bfloat16", False), ("bfloat16", True)]
    assert peers.lineup("transformers", native="float32") == [Peer("transformers", "float32", False)]
    assert peers.lineup("transformers", "bfloat16", True) == [Peer("transformers", "bfloat16", True)]
    with pytest.raises(ValueError, match="not one of transformers, plain"):
        peers.lineup("llama")


def test_a_peer_s_loss_falls() -> None:
    work = Work(64, 8, 16, 30, "cpu")
    for kind in peers.KINDS:
        found = peers.run(Peer(kind, "float32", False), Size(32, 1, 2, 2, 64, True), work)
        assert found.loss < found.first_loss - 0.05
