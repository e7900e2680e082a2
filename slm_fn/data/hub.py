"""Rows of data sets on the Hugging Face hub, streamed, and continued where a broken connection left them.

Gated sets ask for a login: `HF_TOKEN` in the environment, or `hf auth login` once. `HF_HUB_OFFLINE=1` forbids the
network. `datasets` does the reading, huggingface_hub's own retries come first; a set that changes on the hub while it
is read is no longer one set, so `revision` can pin a commit.

Invariant: a retry neither loses nor repeats a row, and no message ever holds a token.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import msgspec

MARK = 1000
"""Rows between two marks; from the last one a broken stream is read again."""
FORMATS = ("json", "parquet", "csv", "text", "arrow")
"""Of `datasets`, what may stand in place of an id; others of its formats unpickle what they read."""
LONGEST = 60.0
"""Seconds of the longest wait; it begins at one and doubles."""

_TRANSIENT = {
    "ConnectionError",
    "TimeoutError",
    "Timeout",
    "TransportError",
    "HTTPException",
    "ClientError",
    "SSLError",
}


class Place(msgspec.Struct, frozen=True):
    """So many rows are behind, and how `datasets` of this version, which another need not read, finds the next."""

    row: int
    state: dict[str, Any]
    version: str


def rows(
    hub_id: str,
    config: str | None = None,
    split: str = "train",
    *,
    revision: str | None = None,
    skip: int = 0,
    place: Place | None = None,
    mark: Callable[[Place], None] = lambda place: None,
    data_files: str | Sequence[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    retries: int = 5,
    problem: Callable[[str], None] | None = None,
    load: Callable[..., Any] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[dict[str, Any]]:
    """Whole records of one split, from row `skip` on.

    Args:
        place: one that `mark` was told, at or before row `skip`: the rows before it are not fetched again.
        mark: is told a place every so many rows, when the rows before it have been given.
        data_files: some files of the set alone; with one of `FORMATS` in place of an id, files of this machine.
        retries: how often in a row the network may fail without a single row between.
        problem: is told of each failure and how long the wait is.
        load: stands in for `datasets.load_dataset`.
        wait: stands in for `time.sleep`.

    Raises:
        ValueError: the hub cannot be reached, has no such data set, or asks for a login; names it and what to do.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = path.write_text('{"text": "one"}\\n{"text": "two"}\\n')
        >>> list(rows("json", data_files=str(path), skip=1))
        [{'text': 'two'}]
    """
    _check_id(hub_id, data_files)
    at, failures, last = skip, 0, place
    if last is None or last.row > skip or last.version != version("datasets"):
        last = Place(0, {}, "")
    while True:
        try:
            stream = _open(load, hub_id, config, split, revision=revision, data_files=data_files, cache_dir=cache_dir)
            if last.state:
                stream.load_state_dict(last.state)
            for number, row in enumerate(stream, last.row):
                if number == at:
                    yield row
                    at, failures = at + 1, 0
                if number + 1 == last.row + MARK:  # while rows are skipped, too
                    last, failures = Place(number + 1, stream.state_dict(), version("datasets")), 0
                    mark(last)
            return
        except Exception as error:
            failures += 1
            pause = _patience(hub_id, error, failures, retries, f"lost at row {at}", problem)
        wait(pause)


def _check_id(hub_id: str, data_files: str | Sequence[str] | None) -> None:
    if data_files is None and os.path.exists(hub_id):
        raise ValueError(f"{hub_id} is a path here too, and would be read in place of the hub's; give it as a path")
    if data_files is not None and "/" not in hub_id and hub_id not in FORMATS:
        raise ValueError(f"{hub_id}: neither OWNER/NAME nor a format that files are read in: {', '.join(FORMATS)}")


def commit(
    hub_id: str,
    revision: str | None = None,
    *,
    retries: int = 5,
    problem: Callable[[str], None] | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> str:
    """The commit that a branch, a tag, or what is newest stands at now: rows of it are the same tomorrow.

    Raises:
        ValueError: as `rows`.
    """
    from huggingface_hub import HfApi

    failures = 0
    while True:
        try:
            return HfApi().dataset_info(hub_id, revision=revision, timeout=30).sha or ""
        except Exception as error:
            failures += 1
            pause = _patience(hub_id, error, failures, retries, "no answer", problem)
        wait(pause)


def _patience(
    hub_id: str,
    error: Exception,
    failures: int,
    retries: int,
    where: str,
    problem: Callable[[str], None] | None,
) -> float:
    """The seconds to wait before the next attempt, having told of them; or the error, where there is none."""
    if not _transient(error) or failures > retries:
        raise ValueError(_told(hub_id, error, failures)) from error
    pause = min(LONGEST, 2.0 ** (failures - 1))
    if problem is not None:
        problem(f"{hub_id}: {where} ({_line(error)}); trying again in {pause:.0f} s")
    return pause


def _open(load: Callable[..., Any] | None, *args: Any, **kwargs: Any) -> Any:
    if load is None:
        from datasets import load_dataset  # imported late: it takes a second

        load = load_dataset
    hub_id, config, split = args
    given = {name: value for name, value in kwargs.items() if value is not None}
    return load(hub_id, config, split=split, streaming=True, **given)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those behind it: `datasets` wraps what went wrong below."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        yield at
        seen.append(at)
        at = at.__cause__ or at.__context__


def _status(error: BaseException) -> int | None:
    """The answer of the server, if there was one."""
    found = (getattr(getattr(link, "response", None), "status_code", None) for link in _chain(error))
    return next((status for status in found if isinstance(status, int)), None)


def _kinds(error: BaseException) -> set[str]:
    """By name: the libraries' network errors have no common class, and not all of them are installed."""
    return {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}


def _transient(error: Exception) -> bool:
    status, kinds = _status(error), _kinds(error)
    if _offline(error):
        return False
    if status is not None:
        return status in (408, 429) or status >= 500
    return bool(kinds & _TRANSIENT)


def _offline(error: Exception) -> bool:
    return "OfflineModeIsEnabled" in _kinds(error) or "OfflineModeIsEnabled" in str(error)


def _told(hub_id: str, error: Exception, failures: int) -> str:
    """One line: which data set, what happened, what to do."""
    status, kinds, line = _status(error), _kinds(error), _line(error)
    login = "set HF_TOKEN or run `hf auth login`"
    if _offline(error):
        todo = "offline mode is on; unset HF_HUB_OFFLINE and HF_DATASETS_OFFLINE, or give local files as a path"
    elif "GatedRepoError" in kinds or "gated" in line:
        todo = f"accept its terms at huggingface.co/datasets/{hub_id}, then {login}"
    elif status in (401, 403) or kinds & {"DatasetNotFoundError", "RepositoryNotFoundError"}:
        todo = f"check the name; if it is private or gated, {login}"
    elif _transient(error):
        todo = f"gave up after {failures} attempts; check the network and run it again, or give local files as a path"
    else:
        todo = "check config, split and revision at its page on the hub"
    return f"{hub_id}: {line}; {todo}"


def _line(error: Exception) -> str:
    """What went wrong, from the innermost network error if there is one, without a token that may stand in it."""
    network = [
        link for link in _chain(error) if _status(link) or {kind.__name__ for kind in type(link).__mro__} & _TRANSIENT
    ]
    text = str((network or [error])[-1])
    text = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    text = re.sub(r"hf_\w{6,}|(?i:bearer )\S+", "***", text.replace(os.environ.get("HF_TOKEN") or "\0", "***"))
    return text.rstrip(".")[:400]
