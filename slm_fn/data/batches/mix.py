"""Several packs as one stream: rows apportioned by weight, each pack in the order of its epochs.

The weights become integers w of a cycle of P = sum(w) rows, exactly where their ratio has a common
denominator of at most `MAX_CYCLE`, else rounded to multiples of 1 / `MAX_CYCLE`. The rows of a
cycle are apportioned by the quota method: each goes to the pack that is furthest behind its share
among those that would not exceed it, so that after any number of rows no pack is a full row away
from its share. Row r belongs to the pack at index r mod P of the cycle and is that pack's row
number (r div P) * w + (its rows earlier in the cycle). So every position costs the same, and a pack
is read in the order in which it would be read alone.

Invariant: a batch depends on the packs, their weights, the seed and its position alone; a single
pack gives its own batches.

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
from slm_fn.data.batches import stream
from slm_fn.data.pack.dataset import Pack

MAX_CYCLE = 1 << 12


class Mixture(NamedTuple):
    """Packs and their cycle of rows.

    `counts` are the rows of each pack in a cycle, `cycle` the pack's number at each of its indices,
    `before` that pack's rows earlier in the cycle.
    """

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
        """Hash of the content: that of a single pack, or of all packs and their counts."""
        if len(self.packs) == 1:
            return self.packs[0].digest
        digests = [pack.digest for pack in self.packs]
        content = repr(list(zip(digests, self.counts, strict=True)))
        return hashlib.sha256(content.encode()).hexdigest()


def mix(packs: Sequence[Pack], weights: Sequence[int | float] | None = None) -> Mixture:
    """Mix packs by weight.

    Args:
        weights: in any unit; None weighs each pack by its training tokens.

    Raises:
        ValueError: no packs, a duplicate, other tokenizers or windows than the first pack's, or
            weights that are not positive.
    """
    if not packs:
        raise ValueError("no packs to train on were named")
    for number, pack in enumerate(packs):
        _check_matches(pack, packs[0])
        if pack.digest in {other.digest for other in packs[:number]}:
            raise ValueError(f"{pack.path} is named twice; name it once with twice the weight")
    if weights is None:
        weights = [pack.info.splits["train"].tokens for pack in packs]
    are_positive = all(math.isfinite(weight) and weight > 0 for weight in weights)
    if len(weights) != len(packs) or not are_positive:
        raise ValueError(
            f"weights must be positive numbers, one for each of {len(packs)} packs, "
            f"not {list(weights)}"
        )
    counts = integer_weights(weights)
    cycle = apportion(counts)
    before = np.zeros(len(cycle), dtype=np.int64)
    for number, count in enumerate(counts):
        before[cycle == number] = np.arange(count)
    return Mixture(tuple(packs), counts, cycle, before)


def _check_matches(pack: Pack, first: Pack) -> None:
    if pack.info.fingerprint != first.info.fingerprint:
        raise ValueError(
            f"{pack.path} and {first.path} were made with different tokenizers; "
            "pack them with the same one"
        )
    if pack.info.seq_len != first.info.seq_len:
        raise ValueError(
            f"{pack.path} has windows of {pack.info.seq_len} tokens and {first.path} "
            f"of {first.info.seq_len}; pack again with --seq-len {first.info.seq_len}"
        )


def integer_weights(weights: Sequence[int | float]) -> tuple[int, ...]:
    """Integers in the ratio of the weights; a ratio that needs a sum above `MAX_CYCLE` is rounded.

    Example:
        >>> integer_weights([0.7, 0.3]), integer_weights([3, 1, 1])
        ((7, 3), (3, 1, 1))
    """
    exact = [Fraction(str(weight)) for weight in weights]
    denominator = math.lcm(*(weight.denominator for weight in exact))
    counts = _reduced([int(weight * denominator) for weight in exact])
    if sum(counts) > MAX_CYCLE:
        total = sum(exact)
        counts = _reduced([max(1, round(weight / total * MAX_CYCLE)) for weight in exact])
    return tuple(counts)


def _reduced(counts: list[int]) -> list[int]:
    divisor = math.gcd(*counts)
    return [count // divisor for count in counts]


def apportion(counts: Sequence[int]) -> np.ndarray:
    """A cycle in which every prefix has nearly the shares of the counts, as indices into them.

    Example:
        >>> apportion([3, 1]).tolist()
        [0, 0, 0, 1]
    """
    total = sum(counts)
    given = [0] * len(counts)
    cycle = np.empty(total, dtype=np.int64)
    for index in range(total):
        # Those below their share of index + 1 rows, rounded up; among them the furthest behind.
        eligible = [k for k, count in enumerate(counts) if given[k] * total < count * (index + 1)]
        chosen = max(eligible, key=lambda k: (Fraction(counts[k], given[k] + 1), -k))
        given[chosen] += 1
        cycle[index] = chosen
    return cycle


def lm_batch(
    mixture: Mixture,
    split: str,
    seed: Key,
    position: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
) -> LMBatch:
    """The batch at a position, at the same cost for every position; every target counts.

    Raises:
        ValueError: a pack's split is shorter than one window, or there are fewer rows than ranks.
    """
    if len(mixture.packs) == 1:
        pack = mixture.packs[0]
        return stream.lm_batch(pack, split, seed, position, batch_size, rank, world_size)
    first_row, num_rows = stream.row_range(position, batch_size, rank, world_size)
    num_cycles, first_index = divmod(first_row, len(mixture.cycle))
    # Relative to the first row's cycle, so that int64 suffices at any position.
    indices = np.arange(first_index, first_index + num_rows)
    cycles_later, cycle_indices = np.divmod(indices, len(mixture.cycle))
    pack_numbers = mixture.cycle[cycle_indices]
    tokens = np.empty((num_rows, mixture.packs[0].info.seq_len + 1), dtype=np.int64)
    for number, (pack, count) in enumerate(zip(mixture.packs, mixture.counts, strict=True)):
        rows = np.flatnonzero(pack_numbers == number)
        if not len(rows):
            continue
        first = rows[0]
        num_cycles_before = num_cycles + int(cycles_later[first])
        pack_row = num_cycles_before * count + int(mixture.before[cycle_indices[first]])
        pack_seed = random.fold_in(seed, pack.digest)
        tokens[rows] = stream.windows(pack, split, pack_seed, pack_row, len(rows))
    return stream.as_batch(tokens)
