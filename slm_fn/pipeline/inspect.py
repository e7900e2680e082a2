"""Look into data: figures and samples of a pack, conversations token by token with what is trained.

Invariant: shows the masks and windows that training reads, made by the same functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slm_fn.data import pack as packs
from slm_fn.data import sources, stream
from slm_fn.pipeline import sft
from slm_fn.pipeline.model import TOKENIZER
from slm_fn.text import chat as chats
from slm_fn.text.tokenizer import Tokenizer


def pack(path: Path, num: int) -> dict[str, Any]:
    """Counts and checksums of a pack (every shard is verified), and `num` decoded windows of each split."""
    opened = packs.open_pack(path, verify=True)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    packs.check_tokenizer(opened, tokenizer.fingerprint)
    info = opened.info
    figures: dict[str, Any] = {"vocab_size": info.vocab_size, "dtype": info.dtype, "seq_len": info.seq_len}
    figures["fingerprint"] = info.fingerprint
    samples: list[dict[str, Any]] = []
    for name, split in info.splits.items():
        figures[f"{name}: documents, tokens, bytes"] = f"{split.documents:,}, {split.tokens:,}, {split.num_bytes:,}"
        figures[f"{name}: bytes per token"] = round(split.num_bytes / max(1, split.tokens), 3)
        figures[f"{name}: shards, checksums right"] = len(split.shards)
        for i in range(min(num, stream.num_windows(opened, name))):
            row = stream.lm_batch(opened, name, 0, i, 1).tokens[0].tolist()
            samples.append({"split": name, "window": i, "text": tokenizer.decode(row)})
    return {"figures": figures, "samples": samples}


def chat(path: Path, tokenizer_file: Path, num: int) -> list[dict[str, Any]]:
    """The first `num` conversations of a JSONL, token by token: its text, and whether the loss counts it."""
    tokenizer = Tokenizer.load(tokenizer_file)
    names = {i: name for name, i in tokenizer.specials.items()}
    rows = []
    for row, _ in zip(sources.read_chat([path]), range(num), strict=False):
        ids, mask = chats.render(chats.ChatTemplate(), tokenizer, sft.messages_of(row.messages))
        tokens = [
            {"text": names.get(i) or tokenizer.token_bytes(i).decode(errors="replace"), "trained": bool(m)}
            for i, m in zip(ids, mask, strict=True)
        ]
        rows.append({"tokens": tokens, "trained": sum(mask)})
    return rows
