"""`slm sample`: continue a text.

Invariant: the same model, prompt, settings and seed print the same text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from slm_fn.cli import options, output
from slm_fn.cli.models.loading import (
    LoadOptions,
    collect_load_options,
    load_model,
    load_options,
)
from slm_fn.cli.models.sampling import (
    SamplingOptions,
    collect_sampling_options,
    resolve_sampling,
    sampling_options,
)

if TYPE_CHECKING:
    from slm_fn.infer.constraints import Constraint
    from slm_fn.infer.detokenizer import TextDelta
    from slm_fn.infer.drafters import Drafter
    from slm_fn.infer.sampling import SampleConfig
    from slm_fn.infer.speculation import SpeculationStats
    from slm_fn.pipeline.model_folder import Model


class SampleRequest(NamedTuple):
    """What to sample, as typed.

    Attributes:
        prompt: the text to continue.
        max_tokens: of one sample.
        stops: strings that end a sample.
        seed: of the first sample; sample i uses `seed + i`.
        num: number of samples.
        stream: print each token as it is generated.
        speculate: `ngram`, the folder of a draft model, or None.
    """

    prompt: str
    max_tokens: int
    stops: tuple[str, ...]
    seed: int
    num: int
    stream: bool
    speculate: str | None


class SampleSource(NamedTuple):
    """A loaded model and what its samples have in common."""

    model: Model
    config: SampleConfig
    constraint: Constraint | None
    drafter: Drafter | None


@click.command("sample")
@click.argument("model", type=options.PATH)
@click.option("--prompt", required=True, help="Text to continue.")
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    default=128,
    show_default=True,
    help="Maximum number of tokens of a sample.",
)
@sampling_options
@click.option("--stop", "stops", multiple=True, help="Stop string. May be repeated.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    help="Seed of the first sample; each further sample adds 1.",
)
@click.option("--greedy", is_flag=True, help="Greedy decoding, as --temperature 0.")
@click.option(
    "--num", type=click.IntRange(1), default=1, show_default=True, help="Number of samples."
)
@click.option(
    "--stream",
    is_flag=True,
    help="Print tokens as they are generated; on a terminal this is the default.",
)
@click.option(
    "--speculate",
    metavar="ngram|MODEL",
    help="Speculative decoding with n-grams or a draft model's folder.",
)
@load_options
@options.as_json
@options.collect("request", SampleRequest)
@collect_sampling_options
@collect_load_options
def command(
    model: Path,
    request: SampleRequest,
    sampling: SamplingOptions,
    greedy: bool,
    loading: LoadOptions,
    as_json: bool,
) -> None:
    """Continue a text with MODEL.

    \b
    Example:
        slm sample demo/pretrain --prompt "ROMEO" --temperature 0.7 --stream
        slm sample demo/pretrain --prompt "ROMEO" --speculate ngram
        slm sample demo/pretrain --prompt "A person in JSON: " --json-schema person.json
    """
    if greedy:
        sampling = sampling._replace(temperature=0.0)
    source = _prepare(model, request, sampling, loading)
    samples = [
        _sample(source, request, request.seed + index, quiet=as_json)
        for index in range(request.num)
    ]
    if as_json:
        output.print_json({"samples": samples})


def _prepare(
    path: Path, request: SampleRequest, sampling: SamplingOptions, loading: LoadOptions
) -> SampleSource:
    from slm_fn.pipeline.generation import speculative

    model = load_model(path, loading)
    config, constraint = resolve_sampling(model, sampling)
    if not request.speculate:
        return SampleSource(model, config, constraint, drafter=None)
    if constraint:
        raise click.UsageError("--speculate cannot be combined with structured output")
    drafter = speculative.load_drafter(
        model, request.speculate, loading.device, loading.raw, loading.engine
    )
    return SampleSource(model, config, constraint, drafter)


def _sample(source: SampleSource, request: SampleRequest, seed: int, quiet: bool) -> dict[str, Any]:
    """Generate and print one sample, and return it as a row of the JSON output."""
    stats_by_pass: list[SpeculationStats] = []
    deltas = _stream(source, request, seed, stats_by_pass)
    stream = request.stream or sys.stdout.isatty()
    text, last = _print_sample(deltas, request.prompt, stream, quiet)
    row: dict[str, Any] = {
        "prompt": request.prompt,
        "text": text,
        "seed": seed,
        "num_tokens": last.num_tokens,
        "finish": last.finish,
    }
    if source.constraint and last.finish == "length":
        output.note(f"cut at {last.num_tokens} tokens: the structured output is incomplete")
    if source.drafter:
        stats = _last_stats(stats_by_pass)
        row["speculation"] = _speculation_figures(stats)
        output.note(
            f"{stats.acceptance:.0%} of {stats.drafted} draft tokens accepted, "
            f"{stats.tokens_per_pass:.1f} tokens per pass"
        )
    return row


def _stream(
    source: SampleSource, request: SampleRequest, seed: int, stats_by_pass: list[SpeculationStats]
) -> Iterator[TextDelta]:
    """Generate text deltas; speculative decoding appends its statistics after every pass."""
    from slm_fn.pipeline.generation import generate, speculative

    model = source.model
    ids = generate.encode_text(model, request.prompt)
    generation = generate.make_request(
        model, ids, source.config, seed, request.max_tokens, source.constraint
    )
    if source.drafter:
        return speculative.stream_text(
            model, source.drafter, generation, request.stops, stats_by_pass.append
        )
    return generate.stream_text(model, generation, request.stops)


def _print_sample(
    deltas: Iterator[TextDelta], prompt: str, stream: bool, quiet: bool
) -> tuple[str, TextDelta]:
    """Print the prompt and its continuation, as it is generated or at its end.

    Returns:
        The continuation, and the last text delta, which holds the finish reason.
    """
    text = ""
    last: TextDelta | None = None
    clean = output.printable if sys.stdout.isatty() else str
    if not quiet:
        click.echo(prompt, nl=False)
    for delta in deltas:
        last = delta
        text += delta.text
        if stream and not quiet:
            click.echo(clean(delta.text), nl=False)
    if not quiet:
        click.echo("" if stream else text)
    assert last is not None, "the last delta holds the finish reason"
    return text, last


def _last_stats(stats_by_pass: list[SpeculationStats]) -> SpeculationStats:
    from slm_fn.infer.speculation import SpeculationStats

    return stats_by_pass[-1] if stats_by_pass else SpeculationStats()


def _speculation_figures(stats: SpeculationStats) -> dict[str, float]:
    return {
        **stats._asdict(),
        "acceptance": round(stats.acceptance, 4),
        "tokens_per_pass": round(stats.tokens_per_pass, 4),
    }
