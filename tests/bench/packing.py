"""Packing (read, encode, write) beside Hugging Face tokenizers' `encode_batch` alone, on the same text in one run.

Usage: `python tests/bench/packing.py CORPUS.jsonl TOKENIZER.json [RUNS]`. Prints one JSON object. The peer gets its
texts from memory and writes nothing; because it takes its time, it encodes a part of the documents in every run, and
all of them once, when the ids are compared. MB are those of the texts in UTF-8.
"""

import json
import resource
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import tokenizers

from slm_fn.data import pack as packs
from slm_fn.pipeline.pack import PackConfig, pack_files
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer

PEER_BYTES = 6_000_000


def ours(tokenizer: Tokenizer, corpus: Path, out: Path) -> float:
    began = time.perf_counter()
    pack_files(PackConfig(val_fraction=0.0), tokenizer, [corpus], out, live=False, note=lambda line: None)
    return time.perf_counter() - began


def peers(peer: tokenizers.Tokenizer, texts: list[str]) -> float:
    began = time.perf_counter()
    peer.encode_batch(texts, add_special_tokens=False)
    return time.perf_counter() - began


def same_ids(pack: packs.Pack, peer: tokenizers.Tokenizer, texts: list[str]) -> bool:
    ids = packs.take(pack, "train", 0, pack.info.splits["train"].tokens)
    starts = [*np.flatnonzero(ids == pack.info.eos).tolist(), len(ids)]
    if len(starts) != len(texts) + 1:
        return False
    found = (ids[a + 1 : b].tolist() for a, b in pairwise(starts))
    batches = (peer.encode_batch(texts[i : i + 500], add_special_tokens=False) for i in range(0, len(texts), 500))
    return all(e.ids == row for e, row in zip((e for batch in batches for e in batch), found, strict=True))


def main(corpus: Path, tokenizer_file: Path, runs: int = 5) -> dict[str, object]:
    texts = [json.loads(line)["text"] for line in corpus.open(encoding="utf-8")]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    part, taken = [], 0
    for text in texts:
        if taken > PEER_BYTES:
            break
        part.append(text)
        taken += len(text.encode())
    tokenizer = Tokenizer.load(tokenizer_file)
    tokenizer.special(ChatTemplate().bos)
    peer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    peer.encode_special_tokens = True
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "pack"
        for _ in range(runs):
            rates["ours"].append(megabytes / ours(tokenizer, corpus, out))
            rates["peer"].append(taken / 1e6 / peers(peer, part))
        same = same_ids(packs.open_pack(out, verify=True), peer, texts)
    mine, theirs = (statistics.median(rates[name]) for name in ("ours", "peer"))
    return {
        "megabytes": round(megabytes, 1),
        "engine": tokenizer.engine.name,
        "pack_mb_per_s": round(mine, 1),
        "encode_batch_mb_per_s": round(theirs, 2),
        "ratio": round(mine / theirs, 1),
        "identical_ids": same,
        "runs": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))))
