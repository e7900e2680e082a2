"""`slm bench decode`: decoding speed here, compared with the memory bandwidth and with peers.

Invariant: both figures of a ratio are measured in the same run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.bench.decode.report import DecodeReport


class Peers(NamedTuple):
    """The peers to measure, and the model file of llama.cpp."""

    peers: tuple[str, ...]
    gguf: Path | None


@click.command("decode")
@click.option(
    "--model",
    type=options.PATH,
    help="Model to measure (default: random weights of SmolLM2-135M's shape).",
)
@click.option(
    "--repeat",
    default=3,
    show_default=True,
    type=click.IntRange(1),
    help="Number of rounds; the median is reported.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["transformers", "llama.cpp"]),
    help="Program to compare with. May be repeated.",
)
@click.option("--gguf", type=options.PATH, help="Model of the same shape for llama.cpp.")
@click.option(
    "--threads", type=click.IntRange(1), help="Number of CPU threads (default: PyTorch's)."
)
@options.engine
@options.device
@options.as_json
@options.collect("peers", Peers)
def command(
    model: Path | None,
    repeat: int,
    peers: Peers,
    threads: int | None,
    engine: str,
    device: str,
    as_json: bool,
) -> None:
    """Measure decoding in bf16, int8 and int4, for one sequence and for eight at a time.

    The share of the bandwidth is the bytes of weights per token times the tokens per second, over
    the rate at which memory is read, measured before and after. Every program has a process of its
    own; they take turns.

    \b
    Example:
        slm bench decode
        slm bench decode --peer transformers --peer llama.cpp --gguf SmolLM2-135M.Q4_1.gguf --json
    """
    from slm_fn.bench.decode import benchmark
    from slm_fn.bench.decode.benchmark import DecodeSettings
    from slm_fn.core import device as devices

    devices.set_num_threads(threads or 0)
    settings = DecodeSettings(model, device, engine, repeat, peers.peers, peers.gguf)
    report = benchmark.run(settings, output.note)
    if as_json:
        output.print_json(report)
    else:
        _print_report(report)


def _print_report(report: DecodeReport) -> None:
    from slm_fn.bench.decode import report as reports

    title = f"slm bench decode, {report.device_name}"
    output.print_table(title, ["", ""], reports.rows(report))
    if report.peers:
        rows = reports.peer_rows(report)
        output.print_table("peers, measured in the same rounds", reports.PEER_COLUMNS, rows)
