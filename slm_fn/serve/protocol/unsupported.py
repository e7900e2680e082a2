"""Request parameters that this server does not implement, and the check that rejects them.

Invariant: a parameter that would change the reply is implemented or is an error, never ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.requests import GenerationRequest

UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "tools": ([],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "grammar": ("",),
    "json_schema": (),
    "guided_whitespace_pattern": (),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "prompt_logprobs": (0,),
    "chat_template": (),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "use_beam_search": (False,),
    "truncate_prompt_tokens": (),
}
"""Parameters that would change the reply, with the values that have no effect."""


def reject_unsupported(request: GenerationRequest, body: Mapping[str, Any]) -> None:
    """Raises an error if a body has a parameter that would change the reply and is not implemented.

    Args:
        request: the decoded body; parameters that are fields of its type are implemented.
        body: the JSON object that `request` was decoded from, with all of its fields.

    Raises:
        ApiError: 400, naming the parameter.
    """
    for name, values_without_effect in UNSUPPORTED.items():
        value = body.get(name)
        if name in request.__struct_fields__ or value is None or value in values_without_effect:
            continue
        if name == "tools" and body.get("tool_choice") == "none":
            continue
        message = f"{name} is not supported by this server"
        raise ApiError(400, message, "unsupported_parameter", name)
