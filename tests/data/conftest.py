"""A small tokenizer, documents in many scripts, and packs of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packed import build_pack

from slm_fn.data.io.documents import Document
from slm_fn.data.pack import dataset as packs
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe

DOCUMENTS = [
    Document(f"doc-{i:02d}", f"The play {i} begins.\r\n😀 日本 {'word ' * i}ends  \n")
    for i in range(40)
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return bpe.train([document.text for document in DOCUMENTS], 300)


@pytest.fixture
def make_pack(tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., packs.Pack]:
    """`make_pack(**changes)`: pack the documents with other settings, and open it."""

    def make(name: str = "pack", **changes: Any) -> packs.Pack:
        build_pack(
            changes.pop("documents", DOCUMENTS),
            changes.pop("encode_flat", tokenizer.encode_flat),
            changes.pop("out", tmp_path / name),
            **{
                "eos": 0,
                "seq_len": 16,
                "shard_size": 300,
                "val_fraction": 0.2,
                "json": tokenizer.to_json(),
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
            }
            | changes,
        )
        return packs.open_pack(tmp_path / name, verify=True)

    return make
