"""The options of sampling and of structured output, and what they mean for a model.

Invariant: a setting that is not given keeps the model's own default.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.infer.constraints import Constraint, Grammar
    from slm_fn.infer.sampling import SampleConfig
    from slm_fn.pipeline.model_folder import Model

NUMERIC_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)


class SamplingOptions(NamedTuple):
    """The sampling options as typed; None or empty where an option is not given."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: tuple[str, ...]
    bad_word: tuple[str, ...]
    json_schema: Path | None
    json_object: bool
    regex: str | None
    choice: tuple[str, ...]
    grammar: Path | None


sampling_options = options.apply_all(
    click.option("--temperature", type=float, help="Sampling temperature; 0 is greedy."),
    click.option("--top-k", type=int, help="Sample from the k likeliest tokens; 0 is off."),
    click.option(
        "--top-p",
        type=float,
        help="Sample from the likeliest tokens that reach this cumulative probability.",
    ),
    click.option(
        "--min-p",
        type=float,
        help="Sample from tokens at least this fraction as likely as the likeliest.",
    ),
    click.option(
        "--typical-p",
        type=float,
        help="Locally typical sampling up to this cumulative probability.",
    ),
    click.option(
        "--repetition-penalty",
        type=float,
        help="Above 1 penalizes tokens that occur in the prompt or the reply.",
    ),
    click.option(
        "--frequency-penalty",
        type=float,
        help="Subtracted from a token's logit for each occurrence in the reply.",
    ),
    click.option(
        "--presence-penalty",
        type=float,
        help="Subtracted once from the logit of every token in the reply.",
    ),
    click.option(
        "--logit-bias",
        multiple=True,
        metavar="ID=BIAS",
        help="Added to a token's logit. May be repeated.",
    ),
    click.option(
        "--bad-word",
        multiple=True,
        metavar="TEXT",
        help="Text that must not be generated. May be repeated.",
    ),
    click.option(
        "--json-schema",
        type=options.PATH,
        help="File with a JSON schema that the reply must follow.",
    ),
    click.option("--json-object", is_flag=True, help="The reply must be a JSON object."),
    click.option("--regex", help="Regular expression that the complete reply must match."),
    click.option(
        "--choice",
        multiple=True,
        help="The reply must be one of these texts. May be repeated.",
    ),
    click.option(
        "--grammar",
        type=options.PATH,
        help="File with a Lark grammar that the reply must follow.",
    ),
)
collect_sampling_options = options.collect("sampling", SamplingOptions)


def resolve_sampling(
    model: Model, sampling: SamplingOptions
) -> tuple[SampleConfig, Constraint | None]:
    """Returns a model's sampling config and the constraint on its reply, by the options.

    Raises:
        ValueError: a setting is out of range, or the grammar is invalid.
        click.UsageError: an option cannot be parsed, a file cannot be read, or two constraints are
            given.
    """
    from slm_fn.infer import sampling as samplers
    from slm_fn.pipeline.generation import generate

    settings = _given_numbers(sampling)
    if sampling.logit_bias:
        settings["logit_bias"] = dict(map(_parse_bias, sampling.logit_bias))
    if sampling.bad_word:
        settings["bad_words"] = generate.encode_bad_words(model, sampling.bad_word)
    grammar = _select_grammar(sampling)
    config = samplers.check(generate.sampling_config(model, settings), model.config.vocab_size)
    if grammar is None:
        return config, None
    return config, generate.compile_constraint(model, grammar)


def _given_numbers(sampling: SamplingOptions) -> dict[str, Any]:
    values = {name: getattr(sampling, name) for name in NUMERIC_FIELDS}
    return {name: value for name, value in values.items() if value is not None}


def _parse_bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        message = f"--logit-bias takes ID=BIAS, such as 42=-100, got {text!r}"
        raise click.UsageError(message) from None


def _select_grammar(sampling: SamplingOptions) -> Grammar | None:
    """Returns the constraint that the options name, if any.

    Raises:
        click.UsageError: more than one is named, or its file cannot be read.
    """
    from slm_fn.infer.constraints import Grammar

    grammars = []
    if sampling.json_schema:
        grammars.append(Grammar("json_schema", _read_text(sampling.json_schema)))
    if sampling.regex:
        grammars.append(Grammar("regex", sampling.regex))
    if sampling.choice:
        grammars.append(Grammar("choice", list(sampling.choice)))
    if sampling.grammar:
        grammars.append(Grammar("grammar", _read_text(sampling.grammar)))
    if sampling.json_object:
        grammars.append(Grammar("json_object"))
    if len(grammars) > 1:
        raise click.UsageError(
            "give one of --json-schema, --json-object, --regex, --choice, --grammar"
        )
    return grammars[0] if grammars else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{path} is not UTF-8 text") from None
