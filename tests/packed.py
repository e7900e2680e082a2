"""Packs for tests: built from flat keyword arguments, read as plain arrays."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from slm_fn.data.io.documents import Document
from slm_fn.data.pack import build, dataset
from slm_fn.data.pack.build import PackSettings, PackTokenizer
from slm_fn.data.pack.dataset import Pack, PackInfo


def build_pack(
    documents: Iterable[Document], encode_flat: Callable[..., Any], out: Path, **given: Any
) -> PackInfo:
    """`build.pack` with the fields of the tokenizer and of the settings as keywords."""
    tokenizer = {name: given.pop(name) for name in PackTokenizer._fields if name in given}
    settings = {name: given.pop(name) for name in PackSettings._fields if name in given}
    return build.pack(
        documents, PackTokenizer(encode_flat, **tokenizer), PackSettings(**settings), out, **given
    )


def take(pack: Pack, split: str, start: int, length: int) -> np.ndarray:
    """`length` ids of a split from `start` on; after the end it continues at the beginning."""
    return dataset.read_rows(pack, split, np.array([start]), length)[0]
