"""cli/models/sampling.py: options replace a model's sampling defaults; one constraint at most."""

from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from slm_fn.cli.models import sampling
from slm_fn.infer.sampling import SampleConfig

DEFAULTS = SampleConfig(temperature=0.5, top_k=7)
MODEL = SimpleNamespace(
    generation=SimpleNamespace(sampling=DEFAULTS), config=SimpleNamespace(vocab_size=100)
)


def resolve(*args):
    """The sampling config and the constraint of a command line."""
    results = []

    @click.command()
    @sampling.sampling_options
    @sampling.collect_sampling_options
    def command(sampling):
        results.append(resolve_sampling(MODEL, sampling))

    resolve_sampling = sampling.resolve_sampling
    command.main([*map(str, args)], standalone_mode=False)
    return results[0]


def test_options_that_are_not_given_keep_the_model_s_defaults():
    assert resolve() == (DEFAULTS, None)


def test_given_options_replace_the_defaults():
    config, _ = resolve("--temperature", 0, "--logit-bias", "9=2.5", "--logit-bias", "3=-100")
    assert (config.temperature, config.top_k) == (0.0, 7)
    assert config.logit_bias == {9: 2.5, 3: -100.0}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--logit-bias", "to=1"], "--logit-bias takes ID=BIAS"),
        (["--json-object", "--regex", "a"], "give one of --json-schema"),
        (["--grammar", "missing.lark"], "cannot read missing.lark"),
    ],
)
def test_invalid_options_are_usage_errors(args, message):
    with pytest.raises(click.UsageError, match=message):
        resolve(*args)


def test_a_grammar_must_be_utf8(tmp_path):
    path = tmp_path / "latin.lark"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(click.UsageError, match="is not UTF-8 text"):
        resolve("--grammar", path)


def test_help_lists_every_option():
    @click.command()
    @sampling.sampling_options
    def command(**values):
        pass

    text = CliRunner().invoke(command, ["--help"]).stdout
    for field in sampling.SamplingOptions._fields:
        assert f"--{field.replace('_', '-')}" in text
