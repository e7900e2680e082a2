"""MinHash: a document as a signature, from which similarity to any other is told; and the bands to look it up by.

The similarity of two documents is the Jaccard similarity of their sets of 5-word shingles. A signature is the minimum
of each of `num_perm` hash functions over the shingles; two signatures agree in a place with probability J (Broder,
1997), so the share of equal places estimates J with standard deviation sqrt(J (1 - J) / num_perm): 0.035 at J = 0.8.
Eight bits of each minimum are kept (Li and Koenig, arXiv 0910.3349); chance agreement, 1 in 256, is taken off.

`rows` places of a signature make one key, and a pair of similarity J shares at least one of `bands` keys with
probability 1 - (1 - J^rows)^bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter 3). `layout`
takes the most rows, hence the fewest false candidates, that meet a pair right at the threshold with probability 0.99.

Numpy rather than rensa 0.5 (Rust), measured on one core with 5-word shingles of English documentation: as fast from
text to signature (20 to 25 MB/s beside 18, since Python has to cut rensa's shingles), as exact (rms error 0.035 beside
0.027 and 0.035 of its two kinds, where sqrt(J (1 - J) / 128) tells 0.035), and its index can be reloaded only by
unpickling, its signatures only by the same version: 0.5 cannot compare with 0.4. Here both are arrays of bytes.

Invariant: a sketch depends on the text, the seed and the settings, not on the process or the machine.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

SHINGLE = 5
"""Words per shingle, as in FineWeb (arXiv 2406.17557)."""
RECALL = 0.99
DIGEST = 16
CHUNK = 4096
BLOCK = 1 << 20
"""Characters hashed at a time, which bounds memory; the few shingles that lie across a cut are not seen."""
HIGHEST = np.uint32(0xFFFFFFFF)

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
BASE = np.uint64(0x9E3779B97F4A7C15)


class DedupConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as near: the similarity, how finely it is estimated, and the seed of the hash functions."""

    threshold: float = 0.8
    num_perm: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or not 8 <= self.num_perm <= 4096:
            raise ValueError(
                f"dedup: threshold {self.threshold} must be in (0, 1], num_perm {self.num_perm} in 8 to 4096"
            )


class Sketch(NamedTuple):
    """What is remembered of a document: 16 bytes of digest, and `num_perm` of signature."""

    digest: bytes
    signature: np.ndarray


def layout(threshold: float, num_perm: int = 128) -> tuple[int, int]:
    """(bands, rows) for a threshold.

    Example:
        >>> layout(0.8), layout(0.5)
        ((21, 6), (42, 3))
    """
    for rows in range(min(8, num_perm), 1, -1):
        bands = num_perm // rows
        if 1 - (1 - threshold**rows) ** bands >= RECALL:
            return bands, rows
    return num_perm, 1


def similarity(signatures: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """The Jaccard similarities that signatures tell of, unbiased: the share of equal places beyond chance."""
    return ((signatures == signature).mean(-1) - 1 / 256) / (1 - 1 / 256)


def fold(text: str) -> str:
    """What exact duplicates share: case folded, white space collapsed."""
    return " ".join(text.casefold().split())


def digest(folded: str) -> bytes:
    """What tells folded texts apart: 128 bits of BLAKE2b, of which no two agree by chance before 2^64 texts."""
    return hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=DIGEST).digest()


def sketch(text: str, config: DedupConfig) -> Sketch:
    """The dear part of the work, pure: made in worker processes, handed to `dedup.Index`."""
    folded = fold(text)
    low = np.full(config.num_perm, HIGHEST, np.uint32)
    for start in range(0, len(folded), BLOCK):
        _lower(low, shingle_hashes(folded[start : start + BLOCK]), config.seed)
    if low.min() == HIGHEST:  # no words, nothing to be near to: chance
        chance = hashlib.shake_128(digest(folded)).digest(config.num_perm)
        return Sketch(digest(folded), np.frombuffer(chance, np.uint8))
    return Sketch(digest(folded), (mixed(low.astype(np.uint64)) >> np.uint64(56)).astype(np.uint8))


def _lower(low: np.ndarray, shingles: np.ndarray, seed: int) -> None:
    """Each permutation's minimum so far and over these shingles, in place, some at a time: they stay in the cache."""
    a, b = _permutations(seed, len(low))
    room = np.empty((len(low), min(CHUNK, len(shingles))), np.uint32)
    for start in range(0, len(shingles), CHUNK):
        part = shingles[start : start + CHUNK]
        space = room[:, : len(part)]
        np.multiply(a, part, out=space)
        np.add(space, b, out=space)
        np.minimum(low, space.min(1), out=low)


@lru_cache(maxsize=8)
def _permutations(seed: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """`num` functions x -> a x + b modulo 2^32, a odd: permutations of shingles that are hashes already."""
    drawn = hashlib.shake_128(f"slm_fn/minhash/{seed}".encode()).digest(8 * num)
    both = np.frombuffer(drawn, "<u4").reshape(2, num, 1).astype(np.uint32)
    return both[0] | np.uint32(1), both[1]


def mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


_IS_WORD = np.array([chr(code).isalnum() for code in range(128)] + [True])
_ALONE = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
"""Scripts written without spaces (Thai, Lao, Burmese, Khmer, Chinese, Japanese): each character is a word."""

_LETTERS = np.where(_IS_WORD, mixed(np.arange(129, dtype=np.uint64)), np.uint64(0))


def shingle_hashes(folded: str) -> np.ndarray:
    """A 32-bit hash of every run of `SHINGLE` words (of all of them, where there are fewer).

    Words are runs of letters and digits, and of anything outside ASCII; signs and spaces of ASCII part them.

    Example:
        >>> len(shingle_hashes("to be, or not to be!")), len(shingle_hashes("?"))
        (2, 0)
    """
    if folded.isascii():
        codes: np.ndarray = np.frombuffer(folded.encode(), np.uint8)
        letters, parted = _LETTERS[codes], ~_IS_WORD[codes]
    else:
        codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), "<u4")
        letters = np.where(codes < 128, _LETTERS[np.minimum(codes, 128)], mixed(codes.astype(np.uint64)))
        parted = ~_IS_WORD[np.minimum(codes, 128)]
        for first, last in _ALONE:
            parted |= (codes >= first) & (codes <= last)
    begins = letters != 0
    begins[1:] &= parted[:-1] | parted[1:]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint32)
    # A word's hash is its polynomial in BASE: terms by their place in the text, summed, moved back to where it starts.
    powers, inverses = _powers(1 << max(10, len(codes).bit_length()))
    words = mixed(np.add.reduceat(letters * powers[: len(codes)], starts) * inverses[starts])
    size = min(SHINGLE, len(words))
    total = np.zeros(len(words) - size + 1, np.uint64)
    for k in range(size):
        total = total * BASE + words[k : len(total) + k]
    return (mixed(total) >> np.uint64(32)).astype(np.uint32)


@lru_cache(maxsize=16)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """BASE^i and BASE^-i modulo 2^64; at most 64 MB of them for all lengths up to `BLOCK`."""
    up, down = np.full(length, BASE), np.full(length, np.uint64(pow(int(BASE), -1, 1 << 64)))
    up[0] = down[0] = np.uint64(1)
    return np.cumprod(up), np.cumprod(down)
