"""serve/keys.py: a key opens by its hash alone, and a file that is none is named by line, never shown."""

import stat

import pytest

from slm_fn.serve import keys


def test_a_key_made_written_and_read_opens(tmp_path):
    path = tmp_path / "keys.txt"
    made = [keys.make(name) for name in ("ada", "bob")]
    keys.write(path, [stored for _, stored in made])
    there = keys.read(path)
    assert [keys.identify(there, key) for key, _ in made] == ["ada", "bob"]
    assert all(key not in path.read_text() for key, _ in made)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for wrong in ("", made[0][0][:-1], made[0][0] + "a", there[0].hash, f"ada sha256:{there[0].hash}", "é\udcff"):
        assert keys.identify(there, wrong) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slm-secret\n", "line 1"),
        ("# a note\n\nada sha256:12\n", "line 3"),
        ("", "holds no API key"),
        (f"ada sha256:{'0' * 64}\nada sha256:{'1' * 64}\n", "stands twice"),
    ],
)
def test_a_file_that_is_none_is_told_without_what_it_says(tmp_path, text, words):
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        keys.read(path)
    assert "secret" not in str(error.value)


def test_names_fit_a_line(tmp_path):
    for name in ("", "a b", "x\nroot sha256:", "n" * 65):
        with pytest.raises(ValueError, match="cannot name a key"):
            keys.make(name)
    with pytest.raises(FileNotFoundError, match="slm keys add"):
        keys.read(tmp_path / "nothing")
