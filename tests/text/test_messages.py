"""Messages survive JSON; unknown roles and fields are rejected in decoding."""

import msgspec
import pytest

from slm_fn.text.messages import Message


def test_a_message_survives_json() -> None:
    message = Message("assistant", "é <|end|>")
    assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"role": "bot", "content": ""}', "Invalid enum value 'bot'"),
        (b'{"role": "user"}', "missing required field `content`"),
        (b'{"role": "user", "content": "", "tool": 1}', "unknown field `tool`"),
    ],
)
def test_other_objects_are_rejected(data: bytes, error: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=error):
        msgspec.json.decode(data, type=Message)
