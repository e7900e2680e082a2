"""The server's settings: one immutable struct with every limit and its default.

Invariant: a `ServeConfig` that passed `check` is valid; nothing else configures the server.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from slm_fn.serve.api_keys import StoredKey

Count = Annotated[int, msgspec.Meta(ge=1)]
Limit = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model is served.

    Attributes:
        name: the model's name in the API.
        max_batch: generations in one batch.
        max_queue: generations that may wait for a slot.
        prefill_chunk: the most prompt tokens of a step, and of a block of the prefix cache.
        prefix_cache_tokens: tokens of the prefix cache; 0 disables it.
        max_choices: upper bound of `n`.
        max_reply: upper bound of a reply's tokens; 0 means the context is the only limit.
        max_body: bytes of a request's body.
        hosts: accepted host names of this server; empty accepts any.
        cors: origins whose pages may use this server.
        keys: hashes of the API keys; empty requires none.
        requests_per_minute: requests per client; 0 means no limit.
        tokens_per_minute: tokens per client; 0 means no limit.
        timeout: seconds of one generation, from its arrival to its last token.
        grammar_timeout: seconds for compiling a schema or grammar.
        head_timeout: seconds for receiving a request's head.
        body_timeout: seconds for receiving a request's body.
        send_timeout: seconds that a client may leave sent data unread.
        drain_timeout: seconds for the replies in progress after a signal to stop.
        open_metrics: whether /metrics requires no key.
        log_text: whether prompts and replies are written to the access log.
    """

    name: str = "model"
    max_batch: Count = 8
    max_queue: Count = 64
    prefill_chunk: Count = 256
    prefix_cache_tokens: Limit = 4096
    max_choices: Count = 16
    max_reply: Limit = 0
    max_body: Count = 1 << 20
    hosts: tuple[str, ...] = ()
    cors: tuple[str, ...] = ()
    keys: tuple[StoredKey, ...] = ()
    requests_per_minute: Limit = 0
    tokens_per_minute: Limit = 0
    timeout: Seconds = 300.0
    grammar_timeout: Seconds = 5.0
    head_timeout: Seconds = 10.0
    body_timeout: Seconds = 15.0
    send_timeout: Seconds = 30.0
    drain_timeout: Seconds = 30.0
    open_metrics: bool = False
    log_text: bool = False


def check(config: ServeConfig) -> ServeConfig:
    """Returns the settings if each is in its range and every origin is valid.

    Raises:
        ValueError: one line that names the setting.

    Example:
        >>> check(ServeConfig(cors=("https://me.example",))).cors
        ('https://me.example',)
    """
    try:
        msgspec.convert(msgspec.to_builtins(config), ServeConfig)
    except msgspec.ValidationError as error:
        message = str(error).replace("`$.", "`")
        raise ValueError(f"server settings: {message}") from None
    for origin in config.cors:
        if origin != "*" and not _is_origin(origin):
            raise ValueError(
                f"--cors {origin!r}: an origin is scheme://host[:port] without a path, "
                "or * for all pages"
            )
    return config


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        _ = parts.port  # raises for a port that is not a number
    except ValueError:
        return False
    is_http = parts.scheme in ("http", "https") and bool(parts.hostname)
    return is_http and text == f"{parts.scheme}://{parts.netloc}"
