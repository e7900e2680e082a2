"""Several packs as one stream: rows dealt out by weight, each pack in the order of its own epochs.

The weights become whole numbers w of a cycle of P = sum(w) rows, exactly where their ratio has a common denominator of
at most `CYCLE`, else to the nearest `CYCLE`-th. A cycle's rows are dealt by quota: each goes to the pack that is
furthest behind its share among those that would not exceed it (the method of Balinski and Young), so after any number
of rows no pack is a whole row away from its share. Row r belongs to the pack at place r mod P of the cycle and is that
pack's row number (r div P) * w + (its rows earlier in the cycle). So any position costs the same, and a pack is read in
the very order in which it would be read alone.

Invariant: a batch depends on the packs, their weights, the seed and its position alone; one pack gives its own batches.

References: Balinski and Young, "The quota method of apportionment", 1975.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from slm_fn.core import random
from slm_fn.core.random import Key
from slm_fn.core.types import LMBatch
from slm_fn.data import stream
from slm_fn.data.pack import Pack

CYCLE = 1 << 12


class Mixture(NamedTuple):
    """Packs, the rows each has in a cycle, the pack at each place of it, and each pack's rows before that place."""

    packs: tuple[Pack, ...]
    counts: tuple[int, ...]
    cycle: np.ndarray
    before: np.ndarray

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of rows that comes from each pack."""
        return tuple(count / len(self.cycle) for count in self.counts)

    @property
    def digest(self) -> str:
        """Names the content: that of a single pack, or of all of them and their shares."""
        if len(self.packs) == 1:
            return self.packs[0].digest
        told = repr([(pack.digest, count) for pack, count in zip(self.packs, self.counts, strict=True)])
        return hashlib.sha256(told.encode()).hexdigest()


def mix(packs: Sequence[Pack], weights: Sequence[int | float] | None = None) -> Mixture:
    """Packs with their shares of the rows; by default as many as they have tokens to train on.

    Raises:
        ValueError: no packs, the same one twice, other tokenizers or windows than the first's, or bad weights.
    """
    if not packs:
        raise ValueError("no packs to train on were named")
    first = packs[0].info
    for number, pack in enumerate(packs):
        if pack.info.fingerprint != first.fingerprint:
            raise ValueError(
                f"{pack.path} and {packs[0].path} were made with different tokenizers; pack them with the same one"
            )
        if pack.info.seq_len != first.seq_len:
            raise ValueError(
                f"{pack.path} has windows of {pack.info.seq_len} tokens and {packs[0].path} of {first.seq_len}; "
                f"pack again with --seq-len {first.seq_len}"
            )
        if pack.digest in {other.digest for other in packs[:number]}:
            raise ValueError(f"{pack.path} is named twice; name it once with twice the weight")
    if weights is None:
        weights = [pack.info.splits["train"].tokens for pack in packs]
    if len(weights) != len(packs) or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(f"weights must be positive numbers, one for each of {len(packs)} packs, not {list(weights)}")
    counts = whole(weights)
    cycle = quota(counts)
    before = np.zeros(len(cycle), dtype=np.int64)
    for pack_number, count in enumerate(counts):
        before[cycle == pack_number] = np.arange(count)
    return Mixture(tuple(packs), counts, cycle, before)


def whole(weights: Sequence[int | float]) -> tuple[int, ...]:
    """Whole numbers in the ratio of the weights, their sum at most `CYCLE` if the ratio has to be rounded.

    Example:
        >>> whole([0.7, 0.3]), whole([3, 1, 1])
        ((7, 3), (3, 1, 1))
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(x.denominator for x in exact))
    counts = [int(x * scale) for x in exact]
    counts = [count // math.gcd(*counts) for count in counts]
    if sum(counts) > CYCLE:
        total = sum(exact)
        counts = [max(1, round(x / total * CYCLE)) for x in exact]
        counts = [count // math.gcd(*counts) for count in counts]
    return tuple(counts)


def quota(counts: Sequence[int]) -> np.ndarray:
    """Which of several each place of a cycle goes to, such that every beginning of it has nearly the same shares.

    Example:
        >>> quota([3, 1]).tolist()
        [0, 0, 0, 1]
    """
    total, dealt = sum(counts), [0] * len(counts)
    places = np.empty(total, dtype=np.int64)
    for place in range(total):
        # Those that stay below their share of place + 1 rows, rounded up; of them the one furthest behind.
        open_to = [k for k, count in enumerate(counts) if dealt[k] * total < count * (place + 1)]
        chosen = max(open_to, key=lambda k: (Fraction(counts[k], dealt[k] + 1), -k))
        dealt[chosen] += 1
        places[place] = chosen
    return places


def lm_batch(
    mixture: Mixture, split: str, seed: Key, position: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> LMBatch:
    """The batch at a position, at the same cost wherever that is; every target counts.

    Raises:
        ValueError: a pack's split is shorter than one window, or there are fewer rows than ranks.
    """
    if len(mixture.packs) == 1:
        return stream.lm_batch(mixture.packs[0], split, seed, position, batch_size, rank, world_size)
    first, num_rows = stream.share(position, batch_size, rank, world_size)
    cycles, place = divmod(first, len(mixture.cycle))
    # Relative to this cycle, so that int64 is enough at any position.
    laps, places = np.divmod(np.arange(place, place + num_rows), len(mixture.cycle))
    belongs = mixture.cycle[places]
    tokens = np.empty((num_rows, mixture.packs[0].info.seq_len + 1), dtype=np.int64)
    for number, (pack, count) in enumerate(zip(mixture.packs, mixture.counts, strict=True)):
        here = np.flatnonzero(belongs == number)
        if len(here):
            begin = cycles * count + int(laps[here[0]]) * count + int(mixture.before[places[here[0]]])
            tokens[here] = stream.windows(pack, split, random.fold_in(seed, pack.digest), begin, len(here))
    return stream.as_batch(tokens)
