"""`slm bench serve`: a model's server under many concurrent clients, compared with llama.cpp's.

Invariant: both figures of a ratio are measured in the same run.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options, output


@click.command("serve")
@click.argument("model", type=options.PATH)
@click.option(
    "--streams",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Number of concurrent clients.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="Seconds of load.",
)
@click.option(
    "--peer",
    type=click.Choice(["llama.cpp"]),
    help="Measure this server too, with the model of --gguf.",
)
@click.option("--gguf", type=options.PATH, help="Model that the peer serves.")
@options.as_json
def command(
    model: Path, streams: int, seconds: float, peer: str | None, gguf: Path | None, as_json: bool
) -> None:
    """Serve MODEL to many clients and compare every reply with the expected text.

    Clients read, disconnect, read slowly, send too much or send invalid requests.

    \b
    Example:
        slm bench serve demo/dpo --streams 64 --seconds 300 --json
        slm bench serve smollm2/ --peer llama.cpp --gguf smollm2.gguf
    """
    from slm_fn.bench.serve import benchmark
    from slm_fn.bench.serve import report as reports
    from slm_fn.bench.serve.benchmark import ServeSettings

    if (peer is None) != (gguf is None):
        raise click.UsageError("--peer llama.cpp and --gguf FILE go together")
    if gguf is not None and not gguf.is_file():
        raise FileNotFoundError(f"{gguf}: no such file")
    report = benchmark.run(ServeSettings(model, streams, seconds, gguf), output.note)
    if as_json:
        output.print_json(report)
    else:
        output.print_table("slm bench serve", ["", ""], reports.rows(report))
