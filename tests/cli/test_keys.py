"""cli/keys.py: a key is printed once and opens the file; names are listed and removed."""

import pytest
from click.testing import CliRunner

from slm_fn.cli.keys import command
from slm_fn.serve import keys


def test_add_list_remove(tmp_path):
    path, run = str(tmp_path / "keys.txt"), CliRunner().invoke
    made = [run(command, ["add", path, "--name", name]).stdout.strip() for name in ("ada", "bob")]
    assert [keys.identify(keys.read(path), key) for key in made] == ["ada", "bob"]
    assert run(command, ["list", path]).output.split() == ["ada", "bob"]
    assert run(command, ["remove", path, "ada"]).exit_code == 0
    assert [keys.identify(keys.read(path), key) for key in made] == [None, "bob"]
    for wrong in (["add", path, "--name", "bob"], ["remove", path, "eve"]):
        with pytest.raises(ValueError, match=wrong[-1]):
            run(command, wrong, catch_exceptions=False)
