"""`slm bench decode`: how fast a model generates here, beside the memory's read rate and beside peers.

Invariant: every ratio is from the same run.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("decode")
@click.option("--model", type=click.Path(path_type=Path), help="By default random weights of SmolLM2-135M's shape.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Rounds; medians are taken.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["transformers", "llama.cpp"]),
    help="Who else. May be repeated.",
)
@click.option("--gguf", type=click.Path(path_type=Path), help="The model that llama.cpp reads, of the same shape.")
@click.option("--threads", type=click.IntRange(1), help="Of the CPU (default: PyTorch's).")
@options.engine
@options.device
@options.as_json
def command(
    model: Path | None,
    repeat: int,
    peers: tuple[str, ...],
    gguf: Path | None,
    threads: int | None,
    engine: str,
    device: str,
    as_json: bool,
) -> None:
    """Generate in bf16, int8 and int4, alone and eight at once, and say how fast.

    The share of the bandwidth is bytes of weights per token over the rate at which memory is read, measured before and
    after. Everyone has a process of its own, in turn.

    \b
    Example:
        slm bench decode
        slm bench decode --peer transformers --peer llama.cpp --gguf SmolLM2-135M.Q4_1.gguf --json
    """
    from slm_fn.bench import decode
    from slm_fn.core import device as devices

    devices.set_threads(threads or 0)
    report = decode.run(model, device, repeat, peers, gguf, engine, note=options.note)
    if as_json:
        options.print_json(report)
        return
    options.print_table(f"slm bench decode, {report.device_name}", ["", ""], decode.rows(report))
    if report.peers:
        columns = ["peer", "tok/s", "8 at once", "prompts", "first ms", "bf16 is", "int8 is"]
        options.print_table("beside it, in the same rounds", columns, decode.peer_rows(report))
