"""The server's settings: one immutable struct, with every limit and every default in it.

Invariant: whoever holds a `ServeConfig` that `check` has passed may listen with it; no handler reads a flag.
"""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import msgspec

from slm_fn.serve.keys import StoredKey

Count = Annotated[int, msgspec.Meta(ge=1)]
Limit = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a model is served. Time-outs are in seconds; a rate of 0 is no limit.

    `hosts` are the names this server goes by (none: any), `cors` the origins whose pages may use it, `keys` the hashes
    of the API keys (none: open). `timeout` bounds one generation from its arrival to its last token, `body_timeout`
    the arrival of a request's body, `head_timeout` that of its head, `grammar_timeout` the reading of a schema or
    grammar, `send_timeout` the wait for a reader who does not read, `drain_timeout` what is left to the replies under
    way once the server was told to stop.
    """

    name: str = "model"
    max_batch: Count = 8
    max_queue: Count = 64
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
    """Return the settings if each is in its range and every origin is one.

    Raises:
        ValueError: one line that names the setting.

    Example:
        >>> check(ServeConfig(cors=("https://me.example",))).cors
        ('https://me.example',)
    """
    try:
        msgspec.convert(msgspec.to_builtins(config), ServeConfig)
    except msgspec.ValidationError as error:
        raise ValueError(f"server settings: {str(error).replace('`$.', '`')}") from None
    for origin in config.cors:
        if origin != "*" and not _is_origin(origin):
            raise ValueError(f"--cors {origin!r}: an origin is scheme://host[:port] and no more, or * for every page")
    return config


def _is_origin(text: str) -> bool:
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and text == f"{parts.scheme}://{parts.netloc}"
