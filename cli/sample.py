"""`slm sample`: continue a text.

Invariant: the same model, prompt, settings and seed print the same text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.infer.stream import Piece


@click.command("sample")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", required=True, help="Text to continue.")
@click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Longest sample.")
@options.sampling
@click.option("--stop", "stops", multiple=True, help="End before this text. May be repeated.")
@click.option("--seed", default=0, show_default=True, help="Of the first sample; the next one's is one more.")
@click.option("--greedy", is_flag=True, help="Always the likeliest token.")
@click.option("--num", type=click.IntRange(1), default=1, show_default=True, help="How many samples.")
@click.option("--stream", is_flag=True, help="Print as it is written; on a terminal that is so anyway.")
@click.option("--speculate", metavar="ngram|MODEL", help="Who guesses ahead: n-grams, or a smaller model's folder.")
@click.option("--raw", is_flag=True, help="The weights as trained, not their running average.")
@options.quantize
@options.engine
@options.device
@options.as_json
def command(
    model: Path,
    prompt: str,
    max_tokens: int,
    stops: tuple[str, ...],
    seed: int,
    greedy: bool,
    num: int,
    stream: bool,
    speculate: str | None,
    raw: bool,
    device: str,
    quantize: str | None,
    engine: str,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Continue a text with MODEL.

    \b
    Example:
        slm sample demo/pretrain --prompt "ROMEO" --temperature 0.7 --stream
        slm sample demo/pretrain --prompt "ROMEO" --speculate ngram
        slm sample demo/pretrain --prompt "A person in JSON: " --json-schema person.json
    """
    from slm_fn.infer.speculate import Stats
    from slm_fn.pipeline import draft, talk
    from slm_fn.pipeline import model as models

    loaded = models.load(model, device, raw, quantize=quantize, decode=engine)
    if greedy:
        sampling["temperature"] = 0.0
    config, constraint = options.sampled(loaded, sampling)
    if speculate and constraint:
        raise click.UsageError("--speculate goes without a form for the reply")
    ids = talk.text_ids(loaded, prompt)
    drafter = draft.drafter(loaded, speculate, device, raw, engine) if speculate else None
    rows: list[dict[str, Any]] = []
    for i in range(num):
        seen, told = [Stats()], (ids, config, seed + i, max_tokens, stops)
        pieces = draft.write(loaded, drafter, *told, seen.append) if drafter else talk.write(loaded, *told, constraint)
        said, last = _shown(pieces, prompt, stream or sys.stdout.isatty(), quiet=as_json)
        rows.append(
            {"prompt": prompt, "text": said, "seed": seed + i, "num_tokens": last.num_tokens, "finish": last.finish}
        )
        if constraint and last.finish == "length":
            options.note(f"cut at {last.num_tokens} tokens: the form is not complete")
        if drafter:
            rows[-1]["speculation"] = _told(seen[-1])
            options.note(
                f"{seen[-1].acceptance:.0%} of {seen[-1].drafted} guesses accepted, "
                f"{seen[-1].tokens_per_pass:.1f} tokens a pass"
            )
    if as_json:
        options.print_json({"samples": rows})


def _shown(pieces: Iterator[Piece], prompt: str, stream: bool, quiet: bool) -> tuple[str, Piece]:
    """What was written behind the prompt, printed as it comes or whole, and the piece that tells how it ended."""
    said, last = "", None
    clean = options.printable if sys.stdout.isatty() else str
    if not quiet:
        click.echo(prompt, nl=False)
    for last in pieces:
        said += last.text
        if stream and not quiet:
            click.echo(clean(last.text), nl=False)
    if not quiet:
        click.echo("" if stream else said)
    assert last is not None, "the last piece tells how it ended"
    return said, last


def _told(stats: Any) -> dict[str, float]:
    figures = {"acceptance": round(stats.acceptance, 4), "tokens_per_pass": round(stats.tokens_per_pass, 4)}
    return {**stats._asdict(), **figures}
