"""The chat message, for JSONL records, chat templates and clients.

Invariant: a message decoded from JSON has one of the three roles and no other field.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal["system", "user", "assistant"]
"""Who wrote a message."""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation.

    The constructor checks nothing, as with every msgspec struct. Decoding from JSON checks the role
    and the fields, `chat_template.check_messages` the role.

    Example:
        >>> msgspec.json.encode(Message("user", "hi"))
        b'{"role":"user","content":"hi"}'
    """

    role: Role
    content: str
