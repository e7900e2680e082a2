"""Errors of reading a Hugging Face data set: whether to retry, and one line on what to do.

Invariant: no message contains an access token.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

MAX_MESSAGE_CHARS = 400

_NETWORK_ERRORS = {
    "ConnectionError",
    "TimeoutError",
    "Timeout",
    "TransportError",
    "HTTPException",
    "ClientError",
    "SSLError",
}
"""By name: the libraries' network errors have no common class, and not all are installed."""
_NOT_FOUND_ERRORS = {"DatasetNotFoundError", "RepositoryNotFoundError"}
_SECRET = re.compile(r"hf_\w{6,}|(?i:bearer )\S+")


def is_transient(error: Exception) -> bool:
    """Whether an attempt after this error may succeed: a network failure or a busy server.

    Example:
        >>> is_transient(ConnectionResetError()), is_transient(KeyError("text"))
        (True, False)
    """
    if _is_offline_mode(error):
        return False
    status = _http_status(error)
    if status is not None:
        return status in (408, 429) or status >= 500
    return bool(_class_names(error) & _NETWORK_ERRORS)


def explain(hub_id: str, error: Exception, num_attempts: int) -> str:
    """Return one line with the data set, what failed, and what to do about it.

    Args:
        hub_id: the data set.
        num_attempts: how often reading it was tried.
    """
    return f"{hub_id}: {describe(error)}; {_advice(hub_id, error, num_attempts)}"


def describe(error: Exception) -> str:
    """Return what failed, from the innermost network error if there is one, without tokens."""
    chain = list(_cause_chain(error))
    network_errors = [cause for cause in chain if _is_network_error(cause)]
    innermost = network_errors[-1] if network_errors else error
    lines = [line.strip() for line in str(innermost).splitlines()]
    text = next(filter(None, lines), type(error).__name__)
    token = os.environ.get("HF_TOKEN")
    if token:
        text = text.replace(token, "***")
    return _SECRET.sub("***", text).rstrip(".")[:MAX_MESSAGE_CHARS]


def _advice(hub_id: str, error: Exception, num_attempts: int) -> str:
    status = _http_status(error)
    class_names = _class_names(error)
    login = "set HF_TOKEN or run `hf auth login`"
    if _is_offline_mode(error):
        return (
            "offline mode is on; unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, "
            "or give local files as a path"
        )
    if "GatedRepoError" in class_names or "gated" in describe(error):
        return f"accept its terms at huggingface.co/datasets/{hub_id}, then {login}"
    if status in (401, 403) or class_names & _NOT_FOUND_ERRORS:
        return f"check the name; if it is private or gated, {login}"
    if is_transient(error):
        return (
            f"gave up after {num_attempts} attempts; check the network and run it again, "
            "or give local files as a path"
        )
    return "check config, split and revision at its page on the hub"


def _cause_chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes: `datasets` wraps the errors of the libraries below it."""
    yielded: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in yielded:
        yield cause
        yielded.append(cause)
        cause = cause.__cause__ or cause.__context__


def _response_status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _http_status(error: BaseException) -> int | None:
    """Return the status of the server's response, if there was one."""
    for cause in _cause_chain(error):
        status = _response_status(cause)
        if status is not None:
            return status
    return None


def _is_network_error(error: BaseException) -> bool:
    """Whether an error, or one behind it, has a response or is a network error itself."""
    return bool(_http_status(error)) or bool(_own_class_names(error) & _NETWORK_ERRORS)


def _own_class_names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _class_names(error: BaseException) -> set[str]:
    names: set[str] = set()
    for cause in _cause_chain(error):
        names |= _own_class_names(cause)
    return names


def _is_offline_mode(error: Exception) -> bool:
    return "OfflineModeIsEnabled" in _class_names(error) or "OfflineModeIsEnabled" in str(error)
