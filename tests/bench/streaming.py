"""Batches from a warm pack: tokens per second, and the time of a jump to a far position.

Usage: `python tests/bench/streaming.py PACK [BATCH_SIZE]`. Prints one JSON object. One thread.

The peer is a plain numpy copy of the same number of windows of the same length, one after the other
from one array into int64 rows, which any loader has to do. All figures are medians of seven rounds,
in seconds of the processor and of the clock: on a shared machine the processor's say more.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from slm_fn.core import random
from slm_fn.data.batches import mix, stream
from slm_fn.data.pack import dataset as packs

NUM_ROUNDS = 7
NUM_JUMPS = 100
MIN_CALLS = 20
MIN_TOKENS = 3_000_000
"""About as many tokens as a round reads."""
MAX_POSITION = 10**15


class Seconds(NamedTuple):
    """Seconds of one call."""

    processor: float
    clock: float


def time_calls(call: Callable[[int], object], num_calls: int) -> Seconds:
    """Returns the time of one call: the median of several rounds of calls with rising numbers."""
    processor_seconds: list[float] = []
    clock_seconds: list[float] = []
    for round_number in range(NUM_ROUNDS):
        processor_started = time.process_time()
        clock_started = time.perf_counter()
        for i in range(num_calls):
            call(round_number * num_calls + i)
        processor_seconds.append((time.process_time() - processor_started) / num_calls)
        clock_seconds.append((time.perf_counter() - clock_started) / num_calls)
    return Seconds(statistics.median(processor_seconds), statistics.median(clock_seconds))


def main(path: Path, batch_size: int) -> dict[str, float]:
    """Measures batches, copies and jumps, and returns the figures."""
    torch.set_num_threads(1)
    pack = packs.open_pack(path)
    seq_len = pack.info.seq_len
    num_tokens = pack.info.splits["train"].tokens
    all_ids = packs.read_rows(pack, "train", np.zeros(1, int), num_tokens)[0]
    array = all_ids.astype(pack.info.dtype)
    batch_tokens = batch_size * seq_len
    num_calls = max(MIN_CALLS, MIN_TOKENS // batch_tokens)
    num_windows = num_calls * NUM_ROUNDS * batch_size
    starts = [i * seq_len % (len(array) - seq_len) for i in range(num_windows)]
    mixture = mix.mix([pack])

    def read_batch(number: int) -> None:
        mix.lm_batch(mixture, "train", 0, number, batch_size)

    def copy(number: int) -> None:
        rows = np.empty((batch_size, seq_len + 1), dtype=np.int64)
        for i, start in enumerate(starts[number * batch_size : (number + 1) * batch_size]):
            rows[i] = array[start : start + seq_len + 1]

    def jump(number: int) -> None:
        position = random.fold_in(0, number) % MAX_POSITION
        stream.lm_batch(pack, "train", 0, position, batch_size)

    streamed = time_calls(read_batch, num_calls)
    copied = time_calls(copy, num_calls)
    jumped = time_calls(jump, NUM_JUMPS)
    return {
        "batch_size": batch_size,
        "seq_len": seq_len,
        "tok_per_s": round(batch_tokens / streamed.processor),
        "tok_per_s_by_clock": round(batch_tokens / streamed.clock),
        "copy_tok_per_s": round(batch_tokens / copied.processor),
        "share_of_copy": round(copied.processor / streamed.processor, 3),
        "jump_ms": round(jumped.processor * 1e3, 4),
        "jump_ms_by_clock": round(jumped.clock * 1e3, 4),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 8)))
