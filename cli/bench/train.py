"""`slm bench train`: training speed here, compared with the machine's matmul rate and with peers.

Invariant: both figures of a ratio are measured in the same run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.bench.train.report import TrainReport


class ModelChoice(NamedTuple):
    """What is trained; None keeps the value of the config."""

    config: str | None
    overrides: tuple[str, ...]
    engine: str | None
    precision: str | None
    batch_size: int | None
    context: int | None


class PeerChoice(NamedTuple):
    """The program to compare with; None for precision and compile measures each variant."""

    peer: str | None
    peer_precision: str | None
    peer_compile: bool | None


@click.command("train")
@click.option(
    "--config",
    help="Config file or preset (default: 6 layers, dim 384, vocabulary 8192: 13.8M parameters).",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "eager", "compile", "graph"]),
    help="Overrides train.engine.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "float32", "tf32", "bfloat16", "float16"]),
    help="Overrides train.precision.",
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows per step.")
@click.option("--context", type=click.IntRange(2), help="Tokens per row.")
@click.option(
    "--steps", default=5, show_default=True, type=click.IntRange(1), help="Timed steps per round."
)
@click.option(
    "--repeat",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Number of rounds; the median is reported.",
)
@click.option(
    "--peer", type=click.Choice(["transformers", "plain"]), help="Trainer to compare with."
)
@click.option(
    "--peer-precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Precision of the peer (default: each usual one).",
)
@click.option(
    "--peer-compile/--peer-eager",
    default=None,
    help="Whether the peer is compiled (default: measure both).",
)
@options.overrides
@options.device
@options.as_json
@options.collect("model", ModelChoice)
@options.collect("peer", PeerChoice)
def command(
    model: ModelChoice, device: str, steps: int, repeat: int, peer: PeerChoice, as_json: bool
) -> None:
    """Measure training on random tokens.

    The peer `transformers` is its LlamaForCausalLM with torch.optim.AdamW; `plain` is a compiled
    nn.Module with the fused AdamW. Every program has a process of its own; they take turns.

    \b
    Example:
        slm bench train
        slm bench train --peer transformers --json
        slm bench train --config pico --engine graph --batch-size 32 --peer plain
    """
    from slm_fn.bench.train import benchmark

    config = benchmark.resolve_config(*model)
    precision = peer.peer_precision or ""
    peers = benchmark.select_peers(config, device, peer.peer, precision, peer.peer_compile)
    report = benchmark.run(config, device, steps, repeat, peers, output.note)
    if as_json:
        output.print_json(report)
    else:
        _print_report(report)


def _print_report(report: TrainReport) -> None:
    from slm_fn.bench.train import report as reports

    title = f"slm bench train, {report.device_name}"
    output.print_table(title, ["", ""], reports.rows(report))
    if report.peers:
        rows = reports.peer_rows(report)
        output.print_table("peers, measured in the same rounds", reports.PEER_COLUMNS, rows)
