"""Stage: text files and a tokenizer to packed shards.

Invariant: a pack carries its tokenizer and that tokenizer's fingerprint.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from slm_fn.data import pack as packs
from slm_fn.data.sources import Document
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer


class PackConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to cut a corpus: window and shard size in tokens, what is held out, worker processes (0: in this one)."""

    seq_len: int = 256
    shard_size: int = 1 << 24
    val_fraction: float = 0.05
    val_names: tuple[str, ...] = ()
    num_workers: int = 0


def pack_documents(
    config: PackConfig, tokenizer: Tokenizer, documents: Iterable[Document], out: Path | str
) -> packs.PackInfo:
    """Encode documents, each behind the start token, into shards under `out`."""
    return packs.pack(
        documents,
        tokenizer.encode_batch,
        out,
        eos=tokenizer.special(ChatTemplate().bos),
        seq_len=config.seq_len,
        shard_size=config.shard_size,
        val_fraction=config.val_fraction,
        val_names=config.val_names,
        workers=config.num_workers,
        tokenizer_json=tokenizer.to_json(),
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
    )
