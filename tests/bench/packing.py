"""Packing speed, compared with `encode_batch` of Hugging Face tokenizers on the same text.

Usage: `python tests/bench/packing.py CORPUS.jsonl TOKENIZER.json [RUNS]`. Prints one JSON object.

Packing reads, encodes and writes. The peer gets its texts from memory and writes nothing. Because
it is slow, it encodes only some of the documents in each run, and all of them once, to compare the
ids. MB are those of the texts in UTF-8.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers

from slm_fn.data.pack import dataset as packs
from slm_fn.pipeline.stages.pack import PackConfig, pack_files
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer

PEER_BYTES = 6_000_000
"""About as much text as the peer encodes in each run."""
PEER_BATCH_SIZE = 500


def discard(line: str) -> None:
    """Discards a line of progress."""


def time_packing(tokenizer: Tokenizer, corpus: Path, out: Path) -> float:
    """Returns the seconds to pack the corpus."""
    config = PackConfig(val_fraction=0.0)
    started = time.perf_counter()
    pack_files(config, tokenizer, [corpus], out, live=False, note=discard)
    return time.perf_counter() - started


def time_peer(peer: tokenizers.Tokenizer, texts: list[str]) -> float:
    """Returns the seconds that the peer takes to encode some texts."""
    started = time.perf_counter()
    peer.encode_batch(texts, add_special_tokens=False)
    return time.perf_counter() - started


def encode_with_peer(peer: tokenizers.Tokenizer, texts: list[str]) -> Iterator[list[int]]:
    """Yields the peer's ids of each text."""
    for start in range(0, len(texts), PEER_BATCH_SIZE):
        batch = texts[start : start + PEER_BATCH_SIZE]
        for encoding in peer.encode_batch(batch, add_special_tokens=False):
            yield encoding.ids


def has_same_ids(pack: packs.Pack, peer: tokenizers.Tokenizer, texts: list[str]) -> bool:
    """Whether the pack holds the peer's ids of each text, in the order of the texts."""
    num_tokens = pack.info.splits["train"].tokens
    ids = packs.read_rows(pack, "train", np.zeros(1, int), num_tokens)[0]
    boundaries = [*np.flatnonzero(ids == pack.info.eos).tolist(), len(ids)]
    if len(boundaries) != len(texts) + 1:
        return False
    packed = (ids[start + 1 : end].tolist() for start, end in pairwise(boundaries))
    expected = encode_with_peer(peer, texts)
    return all(a == b for a, b in zip(packed, expected, strict=True))


def take_bytes(texts: list[str], num_bytes: int) -> tuple[list[str], int]:
    """Returns the first texts that together exceed a size, and their size."""
    taken: list[str] = []
    total_bytes = 0
    for text in texts:
        if total_bytes > num_bytes:
            break
        taken.append(text)
        total_bytes += len(text.encode())
    return taken, total_bytes


def main(corpus: Path, tokenizer_file: Path, runs: int = 5) -> dict[str, object]:
    """Measures both sides in turn and returns the figures."""
    texts = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    peer_texts, peer_bytes = take_bytes(texts, PEER_BYTES)
    tokenizer = Tokenizer.load(tokenizer_file)
    tokenizer.special_id(ChatTemplate().bos)
    peer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    peer.encode_special_tokens = True
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pack"
        for _ in range(runs):
            rates["ours"].append(megabytes / time_packing(tokenizer, corpus, out))
            rates["peer"].append(peer_bytes / 1e6 / time_peer(peer, peer_texts))
        identical_ids = has_same_ids(packs.open_pack(out, verify=True), peer, texts)
    pack_rate = statistics.median(rates["ours"])
    peer_rate = statistics.median(rates["peer"])
    return {
        "megabytes": round(megabytes, 1),
        "engine": tokenizer.encoder_backend.name,
        "pack_mb_per_s": round(pack_rate, 1),
        "encode_batch_mb_per_s": round(peer_rate, 2),
        "ratio": round(pack_rate / peer_rate, 1),
        "identical_ids": identical_ids,
        "runs": {name: [round(rate, 1) for rate in values] for name, values in rates.items()},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
