"""To Hugging Face's folder layout: a tokenizer and its chat template, as `transformers.AutoTokenizer` loads them.

The template renders a conversation as text, whose control tokens transformers then reads as such. It does so in what
the user says too: a message that spells `<|end|>` ends its turn there, which it never does here. Whoever serves such
a folder to strangers has to take control tokens out of their text.

Invariant: conversations that spell no control token get the ids that `text.chat.render` gives them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2.sandbox  # torch brings it, and transformers renders with it
import msgspec

from slm_fn.text.chat import ChatTemplate, Message, render
from slm_fn.text.engine import PROBE
from slm_fn.text.spelling import UNKNOWN
from slm_fn.text.tokenizer import Tokenizer

TOKENIZER, CONFIG, SPECIALS, TEMPLATE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def jinja(template: ChatTemplate) -> str:
    """The chat template in Jinja: one line of loops and ifs, which llama.cpp's small dialect reads as well.

    Example:
        >>> jinja(ChatTemplate())[:63]
        "{{ '<|endoftext|>' }}{% for message in messages %}{% if message"
    """
    says = "".join(
        f"{{% {'if' if role == 'system' else 'elif'} message['role'] == '{role}' %}}"
        f"{{{{ {_quoted(template.role_token(role))} }}}}"
        for role in ("system", "user", "assistant")
    )
    return (
        f"{{{{ {_quoted(template.bos)} }}}}{{% for message in messages %}}{says}"
        "{% else %}{{ raise_exception('unknown role ' + message['role']) }}{% endif %}"
        f"{{{{ message['content'] }}}}{{{{ {_quoted(template.end)} }}}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{{{{ {_quoted(template.assistant)} }}}}{{% endif %}}"
    )


def _quoted(text: str) -> str:
    """A Jinja string; it knows Python's escapes."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


def files(tokenizer: Tokenizer, template: ChatTemplate | None, context: int | None = None) -> dict[str, str]:
    """The files of the layout, by name.

    Args:
        template: None leaves out what has to do with chat, for a tokenizer without roles.
        context: the most tokens that the model reads, where it is known.

    Raises:
        ValueError: the tokenizer lacks a control token of the template.

    Example:
        >>> from slm_fn.text import bpe
        >>> sorted(files(bpe.train(["hello"], 262), ChatTemplate()))
        ['chat_template.jinja', 'special_tokens_map.json', 'tokenizer.json', 'tokenizer_config.json']
    """
    specials, plain = tokenizer.specials, ChatTemplate()
    for name in msgspec.structs.astuple(template) if template is not None else ():
        tokenizer.special(name)
    parts = {
        "bos_token": (template or plain).bos,
        "eos_token": template.end if template is not None else plain.bos,
        "pad_token": "<|pad|>",
        "unk_token": UNKNOWN,
    }
    told = {part: name for part, name in parts.items() if name in specials}
    others = [name for name in specials if name not in told.values()]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **told,
        "additional_special_tokens": others,
        "add_bos_token": False,  # the template writes it
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,  # it would join words and commas in what was decoded
        "added_tokens_decoder": {str(i): _added(name) for name, i in specials.items()},
    }
    config |= {"model_max_length": context} if context else {}
    out = {TOKENIZER: tokenizer.to_json(), SPECIALS: _json({**told, "additional_special_tokens": others})}
    if template is not None:
        config["chat_template"] = out[TEMPLATE] = jinja(template)  # older programs look into the config alone
    return {**out, CONFIG: _json(config)}


def check(folder: Path | str, tokenizer: Tokenizer, template: ChatTemplate | None) -> None:
    """Read a written folder as transformers would, without it, and compare ids with ours.

    Raises:
        ValueError: they differ; says on what.
    """
    place = Path(folder)
    again = Tokenizer.load(place / TOKENIZER)
    if again != tokenizer or again.encode(PROBE) != tokenizer.encode(PROBE):
        raise ValueError(f"{place / TOKENIZER} is not the tokenizer it was made from")
    if template is None:
        return
    rules = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    source = rules.from_string((place / TEMPLATE).read_bytes().decode())
    said = [("system", " Be\n"), ("user", "\n{{ 'é' }} 😀  "), ("assistant", ""), ("user", "{% if %} ")]
    messages = [Message(role, content) for role, content in said]
    for reply in (False, True):
        text = source.render(messages=[msgspec.to_builtins(m) for m in messages], add_generation_prompt=reply)
        if again.encode(text, allowed_special="all") != render(template, tokenizer, messages, reply).ids:
            raise ValueError(f"{place / TEMPLATE} gives a conversation other ids than the template it was made from")


def _added(name: str) -> dict[str, Any]:
    fixed = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    return {"content": name, **fixed, "special": True}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
