"""`slm bench train`: how fast a model trains here, beside the machine's own matmul rate and beside peers.

Invariant: every ratio is from the same run.
"""

from __future__ import annotations

from typing import Any

import click

from slm_fn.cli import options


@click.command("train")
@click.option("--config", help="File or preset; by default 6 layers, 384 wide, vocabulary 8192: 13.8M parameters.")
@click.option("--engine", type=click.Choice(["auto", "eager", "compile", "graph"]), help="As train.engine.")
@click.option(
    "--precision", type=click.Choice(["auto", "float32", "tf32", "bfloat16", "float16"]), help="As train.precision."
)
@click.option("--batch-size", type=click.IntRange(1), help="Rows of a step.")
@click.option("--context", type=click.IntRange(2), help="Tokens of a row.")
@click.option("--steps", default=5, show_default=True, type=click.IntRange(1), help="Timed in each round.")
@click.option("--repeat", default=5, show_default=True, type=click.IntRange(1), help="Rounds; medians are taken.")
@click.option("--peer", type=click.Choice(["transformers", "plain"]), help="Who trains beside it.")
@click.option(
    "--peer-precision", type=click.Choice(["float32", "bfloat16"]), help="Of the peer (default: each that is usual)."
)
@click.option("--peer-compile/--peer-eager", default=None, help="Whether the peer is compiled (default: both).")
@options.overrides
@options.device
@options.as_json
def command(config: str | None, overrides: tuple[str, ...], device: str, as_json: bool, **flags: Any) -> None:
    """Train on random tokens, and say how fast.

    The peer `transformers` is its LlamaForCausalLM with torch.optim.AdamW; `plain` an nn.Module, compiled, with the
    fused AdamW. Everyone has a process of its own, in turn.

    \b
    Example:
        slm bench train
        slm bench train --peer transformers --json
        slm bench train --config pico --engine graph --batch-size 32 --peer plain
    """
    from slm_fn.bench import train

    chosen = train.choose(config, overrides, flags["engine"], flags["precision"], flags["batch_size"], flags["context"])
    lineup = train.lineup(chosen, device, flags["peer"], flags["peer_precision"] or "", flags["peer_compile"])
    report = train.run(chosen, device, flags["steps"], flags["repeat"], lineup, options.note)
    if as_json:
        options.print_json(report)
    else:
        options.print_table(f"slm bench train, {report.device_name}", ["", ""], train.rows(report))
        if report.peers:
            columns = ["peer", "tok/s", "MiB", "compile s", "loss", "slm is"]
            options.print_table("beside it, in the same rounds", columns, train.peer_rows(report))
