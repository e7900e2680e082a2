"""data/io/config_files.py: three formats give the same values; what does not parse says where."""

import pytest

from slm_fn.data.io import config_files

EXPECTED = {"optim": {"learning_rate": 0.0001}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "optim: {learning_rate: 1e-4}"),
        ("a.yml", "optim:\n  learning_rate: 1e-4\n"),
        ("a.toml", "[optim]\nlearning_rate = 1e-4\n"),
        ("a.json", '{"optim": {"learning_rate": 1e-4}}'),
    ],
)
def test_every_format_gives_the_same(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert config_files.read(tmp_path / name) == EXPECTED


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ini", "", "end in .yaml, .toml or .json"),
        ("a.yaml", "- a\n", "a mapping of sections, this is a list"),
        ("a.yaml", "a: 1\na: 2\n", "duplicate key 'a'"),
        ("a.yaml", "[1]: 2\n", "a key is a list or mapping"),
        ("a.json", "{", "does not parse"),
    ],
)
def test_what_is_no_config_is_one_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        config_files.read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_an_empty_file_has_no_sections(tmp_path):
    (tmp_path / "a.yaml").write_text("")
    assert config_files.read(tmp_path / "a.yaml") == {}
