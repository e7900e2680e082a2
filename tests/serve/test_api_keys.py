"""serve/api_keys.py: a key is identified by its hash; an invalid file is reported, not quoted."""

import stat

import pytest

from slm_fn.serve import api_keys


def test_a_generated_key_is_identified_after_writing_and_reading(tmp_path):
    path = tmp_path / "keys.txt"
    generated = [api_keys.generate(name) for name in ("ada", "bob")]
    api_keys.write(path, [stored for _, stored in generated])
    keys = api_keys.read(path)
    assert [api_keys.identify(keys, key) for key, _ in generated] == ["ada", "bob"]
    assert all(key not in path.read_text() for key, _ in generated)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first_key = generated[0][0]
    first_hash = keys[0].hash
    invalid_keys = [
        "",
        first_key[:-1],
        first_key + "a",
        first_hash,
        f"ada sha256:{first_hash}",
        "é\udcff",
    ]
    for invalid_key in invalid_keys:
        assert api_keys.identify(keys, invalid_key) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("slm-secret\n", "line 1"),
        ("# a note\n\nada sha256:12\n", "line 3"),
        ("", "contains no API key"),
        (f"ada sha256:{'0' * 64}\nada sha256:{'1' * 64}\n", "is not unique"),
    ],
)
def test_an_invalid_file_is_an_error_that_does_not_quote_it(tmp_path, text, words):
    path = tmp_path / "keys.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        api_keys.read(path)
    assert "secret" not in str(error.value)


def test_names_must_fit_a_line(tmp_path):
    for name in ("", "a b", "x\nroot sha256:", "n" * 65):
        with pytest.raises(ValueError, match="is not a valid name of a key"):
            api_keys.generate(name)
    with pytest.raises(FileNotFoundError, match="slm keys add"):
        api_keys.read(tmp_path / "nothing")
