"""One chat template, as data: a conversation is encoded once, by the same function for training and for serving.

Invariant: the ids rendered for a reply to be written are a prefix of those rendered with the reply in place, and the
mask is made together with the ids, never found afterwards by searching for control tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import msgspec

from slm_fn.text.tokenizer import Tokenizer


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one side says: `role` is system, user or assistant."""

    role: str
    content: str


class ChatTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The control tokens of a conversation: `bos`, then for each message its role's token, the content, `end`."""

    bos: str = "<|endoftext|>"
    system: str = "<|system|>"
    user: str = "<|user|>"
    assistant: str = "<|assistant|>"
    end: str = "<|end|>"

    def role_token(self, role: str) -> str:
        """The control token that opens a message of this role."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


class Rendered(NamedTuple):
    """A conversation as ids; `mask` is 1 on what the assistant writes: its contents and the `end` after each."""

    ids: list[int]
    mask: list[int]


def check(messages: Sequence[Message], reply: bool = False) -> None:
    """Accept an optional system message, then user and assistant in turn.

    Raises:
        ValueError: no messages, an unknown role, a system message that is not the first, two messages of one role in
            a row, or a reply asked for where the last message is not the user's.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        if message.role not in ("system", "user", "assistant"):
            raise ValueError(f"message {i} has the unknown role {message.role!r}; roles are system, user, assistant")
        if message.role == "system" and i > 0:
            raise ValueError(f"message {i} is a system message; only the first message can be one")
    turns = [message.role for message in messages if message.role != "system"]
    first = len(messages) - len(turns)
    for i, role in enumerate(turns):
        if role != ("user", "assistant")[i % 2]:
            before = (
                "the conversation begins with the user" if i == 0 else f"message {first + i - 1} is of that role too"
            )
            raise ValueError(f"message {first + i} is of role {role}, but user and assistant take turns: {before}")
    if reply and (not turns or turns[-1] != "user"):
        raise ValueError(f"a reply needs a user message to answer, but the last message is of role {messages[-1].role}")


def render(template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], reply: bool = False) -> Rendered:
    """Encode a conversation: `bos`, then per message its role's token, the encoded content, `end`.

    Args:
        reply: end with the assistant's token, ready to be continued by the model.

    Raises:
        ValueError: the messages are no conversation (see `check`), or the tokenizer lacks a control token.

    Example:
        >>> from slm_fn.text import bpe
        >>> render(ChatTemplate(), bpe.train(["hello"], 262), [Message("user", ""), Message("assistant", "")])
        Rendered(ids=[0, 3, 5, 4, 5], mask=[0, 0, 0, 0, 1])
    """
    check(messages, reply)
    ids, mask = _lay(template, tokenizer, messages, tokenizer.encode_batch([message.content for message in messages]))
    if reply:
        ids.append(tokenizer.special(template.assistant))
        mask.append(0)
    return Rendered(ids, mask)


def render_batch(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]
) -> list[Rendered]:
    """`render` of many conversations, whose contents are encoded together by the fastest exact engine.

    Raises:
        ValueError: as `render`.
    """
    for messages in conversations:
        check(messages)
    flat = tokenizer.encode_flat([message.content for messages in conversations for message in messages])
    ids, bounds = flat.ids.tolist(), flat.offsets.tolist()
    contents = iter([ids[begin:end] for begin, end in pairwise(bounds)])
    return [_lay(template, tokenizer, messages, islice(contents, len(messages))) for messages in conversations]


def _lay(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Message], contents: Iterable[list[int]]
) -> Rendered:
    ids, mask = [tokenizer.special(template.bos)], [0]
    end = tokenizer.special(template.end)
    for message, content in zip(messages, contents, strict=True):
        ids += [tokenizer.special(template.role_token(message.role)), *content, end]
        mask += [0] + [int(message.role == "assistant")] * (len(content) + 1)
    return Rendered(ids, mask)
