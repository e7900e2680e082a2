"""`slm bench serve`: how the server of a model bears many streams, beside llama.cpp with slots.

Invariant: every ratio is from the same run.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("serve")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--streams", type=click.IntRange(1), default=64, show_default=True, help="Clients at a time.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="How long they come.")
@click.option("--peer", type=click.Choice(["llama.cpp"]), help="Measure this server too, on the file of --gguf.")
@click.option("--gguf", type=click.Path(path_type=Path), help="The model that the peer serves.")
@options.as_json
def command(model: Path, streams: int, seconds: float, peer: str | None, gguf: Path | None, as_json: bool) -> None:
    """Serve MODEL to clients that read, leave, read slowly, send too much or nonsense; compare every word.

    \b
    Example:
        slm bench serve demo/dpo --streams 64 --seconds 300 --json
        slm bench serve smollm2/ --peer llama.cpp --gguf smollm2.gguf
    """
    import msgspec

    from slm_fn.bench import serve

    if (peer is None) != (gguf is None):
        raise click.UsageError("--peer llama.cpp and --gguf FILE go together")
    if gguf is not None and not gguf.is_file():
        raise FileNotFoundError(f"{gguf}: no such file")
    report = serve.run(model, streams, seconds, gguf, options.note)
    if as_json:
        options.print_json(report)
        return
    rows = [
        [name, round(value, 3) if isinstance(value, float) else value]
        for name, value in msgspec.structs.asdict(report).items()
        if value is not None
    ]
    options.print_table("slm bench serve", ["", ""], rows)
