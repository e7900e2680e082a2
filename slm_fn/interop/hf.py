"""Export of a tokenizer and its chat template to Hugging Face's layout, for `AutoTokenizer`.

The template renders a conversation as text, in which transformers then recognises the special
tokens. It also recognises them in the messages: a message that contains `<|end|>` ends its turn
there, which it never does in slm_fn. A server of such a folder must remove special tokens from
untrusted text.

Invariant: conversations that contain no special token get the ids of `text.chat_template.render`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2.sandbox  # a dependency of torch; transformers renders with it
import msgspec

from slm_fn.text.byte_vocab import UNKNOWN_TOKEN
from slm_fn.text.chat_template import ChatTemplate, render
from slm_fn.text.encoder import PROBE_TEXT
from slm_fn.text.messages import Message, Role
from slm_fn.text.tokenizer import Tokenizer

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIALS = "special_tokens_map.json"
TEMPLATE = "chat_template.jinja"

_PROBE_CONVERSATION: tuple[tuple[Role, str], ...] = (
    ("system", " Be\n"),
    ("user", "\n{{ 'é' }} 😀  "),
    ("assistant", ""),
    ("user", "{% if %} "),
)
"""Checks an export: white space, Unicode, an empty message and Jinja's own syntax."""


def to_jinja(template: ChatTemplate) -> str:
    """Returns the chat template as one line of Jinja, in the small dialect of llama.cpp.

    Example:
        >>> to_jinja(ChatTemplate())[:63]
        "{{ '<|endoftext|>' }}{% for message in messages %}{% if message"
    """
    role_branches = [
        _role_branch("if", "system", template),
        _role_branch("elif", "user", template),
        _role_branch("elif", "assistant", template),
    ]
    lines = [
        _expression(template.bos),
        "{% for message in messages %}",
        *role_branches,
        "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}",
        "{{ message['content'] }}",
        _expression(template.end),
        "{% endfor %}",
        "{% if add_generation_prompt %}",
        _expression(template.assistant),
        "{% endif %}",
    ]
    return "".join(lines)


def _role_branch(
    keyword: str,
    role: Role,
    template: ChatTemplate,
) -> str:
    condition = f"{{% {keyword} message['role'] == '{role}' %}}"
    return condition + _expression(template.role_token(role))


def _expression(text: str) -> str:
    """Returns a Jinja expression that prints the text."""
    return f"{{{{ {_quote(text)} }}}}"


def _quote(text: str) -> str:
    """Returns a Jinja string literal, which has Python's escapes."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"


def export_files(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    context: int | None = None,
) -> dict[str, str]:
    """Returns the text files of a Hugging Face tokenizer folder: contents by file name.

    Args:
        tokenizer: the tokenizer.
        template: the chat template; None for a tokenizer without roles.
        context: the most tokens that the model reads, where it is known.

    Raises:
        ValueError: the tokenizer lacks a special token of the template.

    Example:
        >>> from slm_fn.text.training import bpe
        >>> contents = export_files(bpe.train(["hello"], 262), ChatTemplate())
        >>> len(contents), TEMPLATE in contents
        (4, True)
    """
    if template is not None:
        for name in msgspec.structs.astuple(template):
            tokenizer.special_id(name)
    named_tokens = _named_tokens(tokenizer, template)
    config = _tokenizer_config(tokenizer, named_tokens, context)
    contents = {TOKENIZER: tokenizer.to_json(), SPECIALS: _to_json(named_tokens)}
    if template is not None:
        jinja = to_jinja(template)
        contents[TEMPLATE] = jinja
        config["chat_template"] = jinja  # older programs read the config only
    contents[CONFIG] = _to_json(config)
    return contents


def _named_tokens(tokenizer: Tokenizer, template: ChatTemplate | None) -> dict[str, Any]:
    """Returns the special tokens by their purpose in transformers, and the others as a list."""
    default = ChatTemplate()
    purposes = {
        "bos_token": default.bos if template is None else template.bos,
        "eos_token": default.bos if template is None else template.end,
        "pad_token": "<|pad|>",
        "unk_token": UNKNOWN_TOKEN,
    }
    special_tokens = tokenizer.special_tokens
    named = {purpose: token for purpose, token in purposes.items() if token in special_tokens}
    others = [token for token in special_tokens if token not in named.values()]
    return {**named, "additional_special_tokens": others}


def _tokenizer_config(
    tokenizer: Tokenizer,
    named_tokens: dict[str, Any],
    context: int | None,
) -> dict[str, Any]:
    added_tokens = {
        str(token_id): _added_token(token) for token, token_id in tokenizer.special_tokens.items()
    }
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named_tokens,
        "add_bos_token": False,  # the template writes it
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,  # it would join words and commas of decoded text
        "added_tokens_decoder": added_tokens,
    }
    if context:
        config["model_max_length"] = context
    return config


def check_export(
    folder: Path | str,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
) -> None:
    """Reads an exported folder as transformers does, without it, and compares the ids with ours.

    Raises:
        ValueError: they differ; the message names the file.
    """
    folder = Path(folder)
    exported = Tokenizer.load(folder / TOKENIZER)
    if exported != tokenizer or exported.encode(PROBE_TEXT) != tokenizer.encode(PROBE_TEXT):
        raise ValueError(f"{folder / TOKENIZER} is not the tokenizer it was made from")
    if template is None:
        return
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    jinja = environment.from_string((folder / TEMPLATE).read_bytes().decode())
    messages = [Message(role, content) for role, content in _PROBE_CONVERSATION]
    plain_messages = [msgspec.to_builtins(message) for message in messages]
    for add_generation_prompt in (False, True):
        text = jinja.render(messages=plain_messages, add_generation_prompt=add_generation_prompt)
        exported_ids = exported.encode(text, allowed_special="all")
        if exported_ids != render(template, tokenizer, messages, add_generation_prompt).ids:
            raise ValueError(
                f"{folder / TEMPLATE} gives a conversation other ids "
                "than the template it was made from"
            )


def _added_token(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
