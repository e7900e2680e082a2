"""Rows of data sets on the Hugging Face hub, streamed, and resumed where a connection broke.

Gated data sets require a login: `HF_TOKEN` in the environment, or `hf auth login` once.
`HF_HUB_OFFLINE=1` forbids the network. `datasets` does the reading, and huggingface_hub's own
retries come first. A data set that changes on the hub while it is read is no longer one data set,
so `revision` can pin a commit.

Invariant: a retry neither loses nor repeats a row, and no message contains an access token.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec

from slm_fn.data.io import hub_errors
from slm_fn.data.io.problems import OnProblem

CURSOR_INTERVAL_ROWS = 1000
"""Rows between two cursors; a broken stream is read again from the last one."""
LOCAL_FORMATS = ("json", "parquet", "csv", "text", "arrow")
"""Formats of `datasets` allowed in place of an id; some of its other formats unpickle files."""
MAX_WAIT_SECONDS = 60.0
"""The longest wait between attempts; the first is one second, and each next one twice as long."""


class HubDataset(NamedTuple):
    """Which rows to read: a data set of the hub, or local files in a format of `datasets`.

    Attributes:
        hub_id: OWNER/NAME, or, with `data_files`, one of `LOCAL_FORMATS`.
        config: the data set's configuration.
        split: the data set's split.
        revision: a commit, branch or tag; None is the newest commit.
        data_files: some of the data set's files alone; with a format as `hub_id`, local files.
        cache_dir: where `datasets` caches what it loads.
    """

    hub_id: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    data_files: str | Sequence[str] | None = None
    cache_dir: str | os.PathLike[str] | None = None


class StreamCursor(msgspec.Struct, frozen=True):
    """A position in a stream, from which another process can resume.

    Attributes:
        row: the number of rows before it.
        state: the stream's own state.
        version: the version of `datasets` that wrote the state; another need not understand it.
    """

    row: int
    state: dict[str, Any]
    version: str


class RetryPolicy(NamedTuple):
    """How network failures are handled.

    Attributes:
        max_retries: failures in a row, without a single row between them, before giving up.
        on_problem: receives one line per failure, with the wait before the next attempt.
        sleep: waits for a number of seconds.
    """

    max_retries: int = 5
    on_problem: OnProblem | None = None
    sleep: Callable[[float], None] = time.sleep


DEFAULT_RETRY = RetryPolicy()


@runtime_checkable
class LoadDataset(Protocol):
    """The signature of `datasets.load_dataset` as it is called here."""

    def __call__(
        self, path: str, name: str | None, *, split: str, streaming: bool, **options: Any
    ) -> Any:
        """Return a stream of rows with `state_dict` and `load_state_dict`."""


def read_rows(
    dataset: HubDataset,
    *,
    skip: int = 0,
    cursor: StreamCursor | None = None,
    on_cursor: Callable[[StreamCursor], None] | None = None,
    retry: RetryPolicy = DEFAULT_RETRY,
    load_dataset: LoadDataset | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of one split as dicts, from row `skip` on.

    Args:
        cursor: one that `on_cursor` received, at or before row `skip`: the rows before it are not
            downloaded again.
        on_cursor: receives a cursor every `CURSOR_INTERVAL_ROWS` rows, after the rows before it.
        load_dataset: replaces `datasets.load_dataset`.

    Raises:
        ValueError: the hub cannot be reached, has no such data set, or requires a login; names the
            data set and says what to do.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "a.jsonl"
        >>> _ = path.write_text('{"text": "one"}\\n{"text": "two"}\\n')
        >>> list(read_rows(HubDataset(hub_id="json", data_files=str(path)), skip=1))
        [{'text': 'two'}]
    """
    _check_id(dataset)
    next_row = skip
    num_failures = 0
    resume = StreamCursor(0, {}, "")
    if cursor is not None and cursor.row <= skip and cursor.version == version("datasets"):
        resume = cursor
    while True:
        try:
            stream = _open_stream(dataset, load_dataset)
            if resume.state:
                stream.load_state_dict(resume.state)
            for number, row in enumerate(stream, resume.row):
                if number == next_row:
                    yield row
                    next_row += 1
                    num_failures = 0
                if number + 1 == resume.row + CURSOR_INTERVAL_ROWS:  # also while skipping rows
                    resume = StreamCursor(number + 1, stream.state_dict(), version("datasets"))
                    num_failures = 0
                    if on_cursor is not None:
                        on_cursor(resume)
            return
        except Exception as error:
            num_failures += 1
            event = f"connection lost at row {next_row}"
            seconds = _plan_retry(dataset.hub_id, error, num_failures, retry, event)
        retry.sleep(seconds)


def resolve_commit(
    hub_id: str, revision: str | None = None, retry: RetryPolicy = DEFAULT_RETRY
) -> str:
    """Return the commit that a branch, a tag or the newest revision refers to now.

    Rows of a commit are the same tomorrow.

    Raises:
        ValueError: as `read_rows`.
    """
    from huggingface_hub import HfApi

    num_failures = 0
    while True:
        try:
            return HfApi().dataset_info(hub_id, revision=revision, timeout=30).sha or ""
        except Exception as error:
            num_failures += 1
            seconds = _plan_retry(hub_id, error, num_failures, retry, "no response")
        retry.sleep(seconds)


def _check_id(dataset: HubDataset) -> None:
    hub_id = dataset.hub_id
    if dataset.data_files is None and os.path.exists(hub_id):
        raise ValueError(
            f"{hub_id} is also a local path, which would be read instead of the hub's data set; "
            "give it as a path"
        )
    if dataset.data_files is not None and "/" not in hub_id and hub_id not in LOCAL_FORMATS:
        raise ValueError(
            f"{hub_id}: neither OWNER/NAME nor a format that files are read in: "
            f"{', '.join(LOCAL_FORMATS)}"
        )


def _plan_retry(
    hub_id: str, error: Exception, num_failures: int, retry: RetryPolicy, event: str
) -> float:
    """Return the seconds to wait before the next attempt, reported; or raise if there is none."""
    if not hub_errors.is_transient(error) or num_failures > retry.max_retries:
        raise ValueError(hub_errors.explain(hub_id, error, num_failures)) from error
    seconds = min(MAX_WAIT_SECONDS, 2.0 ** (num_failures - 1))
    if retry.on_problem is not None:
        reason = hub_errors.describe(error)
        retry.on_problem(f"{hub_id}: {event} ({reason}); trying again in {seconds:.0f} s")
    return seconds


def _open_stream(dataset: HubDataset, load_dataset: LoadDataset | None) -> Any:
    if load_dataset is None:
        import datasets  # imported late: it takes a second

        load_dataset = datasets.load_dataset
    options = {
        "revision": dataset.revision,
        "data_files": dataset.data_files,
        "cache_dir": dataset.cache_dir,
    }
    given = {name: value for name, value in options.items() if value is not None}
    return load_dataset(
        dataset.hub_id, dataset.config, split=dataset.split, streaming=True, **given
    )
