"""Batches from a warm pack: tokens/s and the time of a jump, beside a plain numpy copy of the same bytes.

Usage: `python tests/bench/streaming.py PACK [BATCH_SIZE]`. Prints one JSON object. One thread. On a shared machine the
seconds of the processor say more than those of the clock: both are printed, medians of seven. The copy takes the
same number of windows, one after the other and as long, from one array into int64 rows: what any loader has to do.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from slm_fn.core import random
from slm_fn.data import mix, stream
from slm_fn.data import pack as packs

REPEATS = 7


def seconds(call: Callable[[int], object], calls: int) -> tuple[float, float]:
    """(processor, clock) for one call, the median of several rounds."""
    cpu, wall = [], []
    for repeat in range(REPEATS):
        began = time.process_time(), time.perf_counter()
        for i in range(calls):
            call(repeat * calls + i)
        cpu.append((time.process_time() - began[0]) / calls)
        wall.append((time.perf_counter() - began[1]) / calls)
    return statistics.median(cpu), statistics.median(wall)


def main(path: Path, batch_size: int) -> dict[str, float]:
    torch.set_num_threads(1)
    pack = packs.open_pack(path)
    size, row = pack.info.seq_len, packs.take(pack, "train", 0, pack.info.splits["train"].tokens)
    plain, tokens = row.astype(pack.info.dtype), batch_size * size
    calls = max(20, 3_000_000 // tokens)
    starts = [i * size % (len(plain) - size) for i in range(calls * REPEATS * batch_size)]

    def copy(number: int) -> None:
        out = np.empty((batch_size, size + 1), dtype=np.int64)
        for i, start in enumerate(starts[number * batch_size : (number + 1) * batch_size]):
            out[i] = plain[start : start + size + 1]

    def jump(number: int) -> None:
        stream.lm_batch(pack, "train", 0, random.fold_in(0, number) % 10**15, batch_size)

    mixture = mix.mix([pack])
    streamed = seconds(lambda number: mix.lm_batch(mixture, "train", 0, number, batch_size), calls)
    copied, jumped = seconds(copy, calls), seconds(jump, 100)
    return {
        "batch_size": batch_size,
        "seq_len": size,
        "tok_per_s": round(tokens / streamed[0]),
        "tok_per_s_by_clock": round(tokens / streamed[1]),
        "copy_tok_per_s": round(tokens / copied[0]),
        "share_of_copy": round(copied[0] / streamed[0], 3),
        "jump_ms": round(jumped[0] * 1e3, 4),
        "jump_ms_by_clock": round(jumped[1] * 1e3, 4),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8)))
