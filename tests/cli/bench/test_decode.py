"""`slm bench decode` on the command line."""

from click.testing import CliRunner

from slm_fn.cli.bench.decode import command


def test_a_peer_without_its_file_is_refused_before_anything_is_measured():
    result = CliRunner().invoke(command, ["--peer", "llama.cpp"])
    assert isinstance(result.exception, ValueError)
    assert "--gguf FILE" in str(result.exception)


def test_help_shows_an_example():
    assert "slm bench decode --peer transformers" in CliRunner().invoke(command, ["--help"]).stdout
