"""The chat template: one function encodes conversations for training and for serving.

Invariant: the ids of a prompt are a prefix of the ids of the conversation with the reply in it. The
loss mask is made together with the ids, never by searching them for special tokens afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from typing import NamedTuple, get_args

import msgspec

from slm_fn.text.messages import Message, Role
from slm_fn.text.tokenizer import Tokenizer

_ROLES = get_args(Role)


class ChatTemplate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The special tokens of a conversation.

    A conversation is `bos`, then for each message the token of its role, the content, and `end`.
    """

    bos: str = "<|endoftext|>"
    system: str = "<|system|>"
    user: str = "<|user|>"
    assistant: str = "<|assistant|>"
    end: str = "<|end|>"

    def role_token(self, role: Role) -> str:
        """Returns the special token that opens a message of a role."""
        return {"system": self.system, "user": self.user, "assistant": self.assistant}[role]


class RenderedChat(NamedTuple):
    """An encoded conversation: ids, and the loss mask.

    `mask` is 1 on what the assistant generates: its contents and the `end` token after each.
    """

    ids: list[int]
    mask: list[int]


def check_messages(messages: Sequence[Message], add_generation_prompt: bool = False) -> None:
    """Accepts an optional system message, then messages of user and assistant in alternation.

    Args:
        messages: the conversation.
        add_generation_prompt: whether the assistant is to reply; the last message is the user's.

    Raises:
        ValueError: no messages, an unknown role, a system message that is not the first, two
            messages of one role in succession, or nothing to reply to.
    """
    if not messages:
        raise ValueError("a conversation needs at least one message")
    for i, message in enumerate(messages):
        if message.role not in _ROLES:
            raise ValueError(
                f"message {i} has the unknown role {message.role!r}; roles are {', '.join(_ROLES)}"
            )
        if message.role == "system" and i > 0:
            raise ValueError(f"message {i} is a system message; only the first message can be one")
    num_system = int(messages[0].role == "system")
    _check_alternation(messages, num_system)
    if add_generation_prompt and messages[-1].role != "user":
        raise ValueError(
            "a reply needs a user message to answer, "
            f"but the last message is of role {messages[-1].role}"
        )


def _check_alternation(messages: Sequence[Message], first: int) -> None:
    for i, message in enumerate(messages[first:], first):
        expected = "user" if (i - first) % 2 == 0 else "assistant"
        if message.role == expected:
            continue
        if i == first:
            reason = "the conversation begins with the user"
        else:
            reason = f"message {i - 1} is of that role too"
        raise ValueError(
            f"message {i} is of role {message.role}, but user and assistant take turns: {reason}"
        )


def render(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    add_generation_prompt: bool = False,
) -> RenderedChat:
    """Encodes a conversation: `bos`, then for each message its role's token, its content, `end`.

    Args:
        template: the special tokens.
        tokenizer: encodes the contents; special tokens named in a content stay text.
        messages: the conversation.
        add_generation_prompt: end with the assistant's token, ready for the model to continue.

    Raises:
        ValueError: the messages are invalid (see `check_messages`), or the tokenizer lacks a
            special token of the template.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> messages = [Message("user", ""), Message("assistant", "")]
        >>> render(ChatTemplate(), bpe.train(["hello"], 262), messages)
        RenderedChat(ids=[0, 3, 5, 4, 5], mask=[0, 0, 0, 0, 1])
    """
    check_messages(messages, add_generation_prompt)
    contents = tokenizer.encode_batch([message.content for message in messages])
    chat = _assemble(template, tokenizer, messages, contents)
    if add_generation_prompt:
        chat.ids.append(tokenizer.special_id(template.assistant))
        chat.mask.append(0)
    return chat


def render_batch(
    template: ChatTemplate, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]]
) -> list[RenderedChat]:
    """Encodes many conversations as `render` does, with the fastest exact encoder backend.

    Raises:
        ValueError: as `render`.
    """
    contents: list[str] = []
    for messages in conversations:
        check_messages(messages)
        contents += [message.content for message in messages]
    flat = tokenizer.encode_flat(contents)
    ids = flat.ids.tolist()
    encoded = iter([ids[begin:end] for begin, end in pairwise(flat.offsets.tolist())])
    return [
        _assemble(template, tokenizer, messages, islice(encoded, len(messages)))
        for messages in conversations
    ]


def _assemble(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    contents: Iterable[list[int]],
) -> RenderedChat:
    """Returns the conversation of messages whose contents are encoded already."""
    ids = [tokenizer.special_id(template.bos)]
    mask = [0]
    end_id = tokenizer.special_id(template.end)
    for message, content in zip(messages, contents, strict=True):
        role_id = tokenizer.special_id(template.role_token(message.role))
        is_generated = int(message.role == "assistant")
        ids += [role_id, *content, end_id]
        mask += [0] + [is_generated] * (len(content) + 1)
    return RenderedChat(ids, mask)
