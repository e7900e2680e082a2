"""Checks of what clients received: errors, replies that differ from the model's, invalid requests.

Invariant: every reply is compared with the one that the model gives without a server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from slm_fn.bench.serve.clients import STREAMING_KINDS, ClientResult, Exchange, LoadRequest

MAX_DESCRIPTIONS = 5
"""How many different problems of a sort are described, the most frequent first."""
MAX_DESCRIPTION_CHARS = 400


class LoadChecks(NamedTuple):
    """The outcome of the checks.

    Attributes:
        answered: results of valid requests with status 200.
        num_rate_limited: valid requests with status 429.
        num_invalid: invalid requests that were sent.
        errors: failed valid requests, and invalid ones without a status of 4xx.
        mismatches: a description of each reply that differs from the model's.
        num_accepted_at_stop: requests in flight at the shutdown that the server had accepted.
        cut_at_stop: a description of each of those that did not end properly.
    """

    answered: list[ClientResult]
    num_rate_limited: int
    num_invalid: int
    errors: list[ClientResult]
    mismatches: list[str]
    num_accepted_at_stop: int
    cut_at_stop: list[str]


def check_exchanges(exchanges: Sequence[Exchange], at_stop: Sequence[Exchange]) -> LoadChecks:
    """Checks all exchanges of a load test.

    Args:
        exchanges: those of the load.
        at_stop: those that were in flight when the server was stopped.
    """
    answered: list[ClientResult] = []
    errors: list[ClientResult] = []
    mismatches: list[str] = []
    num_rate_limited = 0
    num_invalid = 0
    for request, result in exchanges:
        if result.kind not in STREAMING_KINDS:
            num_invalid += 1
            if not 400 <= result.status < 500:
                errors.append(result)
        elif result.status == 429:
            num_rate_limited += 1
        else:
            if result.status == 200:
                answered.append(result)
            if result.status != 200 or result.error:
                errors.append(result)
            else:
                mismatches.append(find_mismatch(request, result))
    accepted_at_stop = [exchange for exchange in at_stop if exchange.result.status == 200]
    cut_at_stop = [find_mismatch(request, result) for request, result in accepted_at_stop]
    return LoadChecks(
        answered=answered,
        num_rate_limited=num_rate_limited,
        num_invalid=num_invalid,
        errors=errors,
        mismatches=list(filter(None, mismatches)),
        num_accepted_at_stop=len(accepted_at_stop),
        cut_at_stop=list(filter(None, cut_at_stop)),
    )


def find_mismatch(request: LoadRequest, result: ClientResult) -> str:
    """Returns how a reply differs from the model's; empty if it does not.

    The text of a client that disconnected is compared with the beginning of the expected one.

    Example:
        >>> request = LoadRequest("/", {}, "one two", "stop", 3)
        >>> find_mismatch(request, ClientResult("disconnecting", 200, "one"))
        ''
        >>> find_mismatch(request, ClientResult("disconnecting", 200, "two"))
        "got 'two', expected 'one two'"
    """
    if result.kind == "disconnecting" and not result.is_done:
        if request.expected_text.startswith(result.text):
            return ""
        return f"got {result.text!r}, expected {request.expected_text!r}"
    got = (result.text, result.finish, result.num_tokens, result.is_done)
    expected = (request.expected_text, request.expected_finish, request.expected_tokens, True)
    return "" if got == expected else f"got {got}, expected {expected}"


def describe_problems(checks: LoadChecks) -> list[str]:
    """Returns a line for each of the most frequent errors, mismatches and cut streams."""
    errors = [f"error {result.kind} {result.status} {result.error}" for result in checks.errors]
    lines: list[str] = []
    for descriptions in (errors, checks.mismatches + checks.cut_at_stop):
        for description, count in Counter(descriptions).most_common(MAX_DESCRIPTIONS):
            lines.append(f"{count} times: {description[:MAX_DESCRIPTION_CHARS]}")
    return lines
