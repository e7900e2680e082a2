"""The access log: one line of JSON per request; text of messages only if configured.

Invariant: no header, query or key is in a line; without `log_text` no prompt and no reply either.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar.types import Message, Scope

log = logging.getLogger("slm.access")
STATE_KEY = "slm_access_record"
INTERNAL_FIELDS = ("start", "written")

Record = dict[str, Any]


def get_record(scope: Scope) -> Record:
    """Returns the fields of a request's line so far; handlers add to it."""
    state: dict[str, Any] = scope.setdefault("state", {})
    record: Record = state.setdefault(STATE_KEY, {"start": time.monotonic()})
    return record


async def record_response(message: Message, scope: Scope) -> None:
    """Records the status when a response begins, and writes the line when it has ended.

    A hook that runs before each message is sent.
    """
    record = get_record(scope)
    if message["type"] == "http.response.start":
        record["status"] = message["status"]
        record["id"] = ""
        for name, value in message["headers"]:
            if name.lower() == b"x-request-id":
                record["id"] = value.decode()
    elif message["type"] == "http.response.body" and not message.get("more_body", False):
        write_line(scope)


def write_line(scope: Scope, **fields: Any) -> None:
    """Writes the line of a request, once; `fields` replace those of its record."""
    record = get_record(scope)
    was_written = record.get("written", False)
    record["written"] = True
    if was_written or not log.isEnabledFor(logging.INFO):
        return
    record |= fields
    log.info("%s", msgspec.json.encode(_line(scope, record), enc_hook=str).decode())


def _line(scope: Scope, record: Record) -> dict[str, Any]:
    milliseconds = (time.monotonic() - record["start"]) * 1000
    client = scope.get("client")
    address = client[0] if client else None
    recorded = {name: value for name, value in record.items() if name not in INTERNAL_FIELDS}
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope.get("method"),
        "path": str(scope.get("path"))[:200],
        "who": scope.get("user") or address,
        "ms": round(milliseconds, 1),
        **recorded,
    }
