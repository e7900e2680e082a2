"""The access log: one line of JSON per request, by numbers and names; message text only where asked for.

Invariant: no header, no query and no key is in a line; without `log_text` no word of a prompt or a reply either.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar.types import Message, Scope

log = logging.getLogger("slm.access")
KEY = "slm_account"


def account(scope: Scope) -> dict[str, Any]:
    """What is known of a request so far; handlers add to it."""
    state: dict[str, Any] = scope.setdefault("state", {})
    return state.setdefault(KEY, {"start": time.monotonic()})


async def watch(message: Message, scope: Scope) -> None:
    """Note the status when a response begins, and write the line when it has ended. A hook before sending."""
    told = account(scope)
    if message["type"] == "http.response.start":
        told["status"] = message["status"]
        told["id"] = next((v.decode() for k, v in message["headers"] if k.lower() == b"x-request-id"), "")
    elif message["type"] == "http.response.body" and not message.get("more_body", False):
        write(scope)


def write(scope: Scope, **changes: Any) -> None:
    """Write a request's line, once."""
    told = account(scope)
    if told.pop("written", False) or not log.isEnabledFor(logging.INFO):
        told["written"] = True
        return
    told |= changes
    client = scope.get("client")
    spent, now = time.monotonic() - told["start"], datetime.now(UTC)
    line = {
        "time": now.isoformat(timespec="milliseconds"),
        "method": scope.get("method"),
        "path": str(scope.get("path"))[:200],
        "who": scope.get("user") or (client[0] if client else None),
        "ms": round(spent * 1000, 1),
        **{name: value for name, value in told.items() if name not in ("start", "written")},
    }
    told["written"] = True
    log.info("%s", msgspec.json.encode(line, enc_hook=str).decode())
