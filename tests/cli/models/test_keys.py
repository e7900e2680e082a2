"""`slm keys`: a key is printed once and its hash is in the file; names are listed and removed."""

import pytest
from click.testing import CliRunner

from slm_fn.cli.models.keys import command
from slm_fn.serve import api_keys


def test_add_list_remove(tmp_path):
    path = str(tmp_path / "keys.txt")
    run = CliRunner().invoke
    generated = [
        run(command, ["add", path, "--name", name]).stdout.strip() for name in ("ada", "bob")
    ]
    assert [api_keys.identify(api_keys.read(path), key) for key in generated] == ["ada", "bob"]
    assert run(command, ["list", path]).output.split() == ["ada", "bob"]
    assert run(command, ["remove", path, "ada"]).exit_code == 0
    assert [api_keys.identify(api_keys.read(path), key) for key in generated] == [None, "bob"]
    for wrong in (["add", path, "--name", "bob"], ["remove", path, "eve"]):
        with pytest.raises(ValueError, match=wrong[-1]):
            run(command, wrong, catch_exceptions=False)
