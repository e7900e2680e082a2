"""MinHash signatures: estimating the similarity of documents, and the bands to look them up by.

The similarity of two documents is the Jaccard similarity J of their sets of 5-word shingles. A
signature holds the minimum of each of `num_perm` hash functions over the shingles. Two signatures
agree at a position with probability J (Broder, 1997), so the share of equal positions estimates J
with standard deviation sqrt(J (1 - J) / num_perm): 0.035 at J = 0.8. Eight bits of each minimum are
kept (Li and Koenig, arXiv 0910.3349); agreement by chance, 1 in 256, is subtracted.

`rows` positions of a signature make one key. Two documents of similarity J share at least one of
`bands` keys with probability 1 - (1 - J^rows)^bands (Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3). `choose_bands` takes the most rows, hence the fewest false candidates,
that find a pair exactly at the threshold with probability 0.99.

Numpy rather than rensa 0.5 (Rust), measured on one core with 5-word shingles of English
documentation: as fast from text to signature (20 to 25 MB/s against 18, since Python must make
rensa's shingles), and as exact (rms error 0.035 against 0.027 and 0.035 of its two kinds, where
sqrt(J (1 - J) / 128) is 0.035). rensa's index can be reloaded only by unpickling, and its
signatures only by the same version: 0.5 cannot compare with 0.4. Here both are arrays of bytes.

Invariant: a sketch depends on the text, the seed and the settings, not on the process or machine.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import msgspec
import numpy as np

SHINGLE_WORDS = 5
"""Words per shingle, as in FineWeb (arXiv 2406.17557)."""
TARGET_RECALL = 0.99
"""Probability of finding a pair whose similarity is exactly the threshold."""
DIGEST_BYTES = 16
BLOCK_CHARACTERS = 1 << 20
"""Characters hashed at once, which bounds memory; the few shingles across a cut are left out."""
CHUNK_SHINGLES = 4096
"""Shingles permuted at once: these arrays stay in the processor's cache."""
MAX_HASH = np.uint32(0xFFFFFFFF)
HASH_BASE = np.uint64(0x9E3779B97F4A7C15)
"""Base of polynomial hashes modulo 2^64: odd, and so invertible."""

_SPLITMIX_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


class DedupConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as a near duplicate.

    Args:
        threshold: least Jaccard similarity, in (0, 1].
        num_perm: number of hash functions, 8 to 4096; more estimate the similarity better.
        seed: seed of the hash functions.

    Raises:
        ValueError: a setting is out of range.
    """

    threshold: float = 0.8
    num_perm: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1 or not 8 <= self.num_perm <= 4096:
            raise ValueError(
                f"dedup: threshold {self.threshold} must be in (0, 1], "
                f"num_perm {self.num_perm} in 8 to 4096"
            )


class Sketch(NamedTuple):
    """What represents a document in duplicate detection.

    `digest` is 16 bytes, equal for exact duplicates. `signature` is (num_perm,) uint8, similar for
    near duplicates.
    """

    digest: bytes
    signature: np.ndarray


def choose_bands(threshold: float, num_perm: int = 128) -> tuple[int, int]:
    """Returns (bands, rows per band) for a similarity threshold.

    Args:
        threshold: Jaccard similarity, in (0, 1].
        num_perm: length of a signature; bands times rows is at most this.

    Example:
        >>> choose_bands(0.8), choose_bands(0.5)
        ((21, 6), (42, 3))
    """
    for rows in range(min(8, num_perm), 1, -1):
        bands = num_perm // rows
        recall = 1 - (1 - threshold**rows) ** bands
        if recall >= TARGET_RECALL:
            return bands, rows
    return num_perm, 1


def estimate_jaccard(signatures: np.ndarray, signature: np.ndarray) -> np.ndarray:
    """Returns unbiased estimates of the Jaccard similarity between documents and one document.

    It is the share of equal positions, corrected for agreement by chance.

    Args:
        signatures: (documents, num_perm), uint8.
        signature: (num_perm,), uint8.

    Returns:
        (documents,); negative values are possible for dissimilar documents.
    """
    chance = 1 / 256
    share_equal: np.ndarray = (signatures == signature).mean(-1)
    return (share_equal - chance) / (1 - chance)


def fold_text(text: str) -> str:
    """Returns the text case-folded, with every run of white space as one space.

    Exact duplicates are texts that are equal after this.

    Example:
        >>> fold_text(" It  was\\nTHE")
        'it was the'
    """
    return " ".join(text.casefold().split())


def text_digest(folded: str) -> bytes:
    """Returns the 128-bit BLAKE2b digest of a folded text; collisions need about 2^64 texts."""
    data = folded.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


def make_sketch(text: str, config: DedupConfig) -> Sketch:
    """Returns the sketch of a document, for `dedup.DedupIndex`.

    The expensive part of deduplication; a pure function, so worker processes can run it.

    Args:
        text: the document.
        config: number and seed of the hash functions.
    """
    folded = fold_text(text)
    digest = text_digest(folded)
    minima = np.full(config.num_perm, MAX_HASH, np.uint32)
    for start in range(0, len(folded), BLOCK_CHARACTERS):
        block = folded[start : start + BLOCK_CHARACTERS]
        _update_minima(minima, hash_shingles(block), config.seed)
    if minima.min() == MAX_HASH:
        # No words and so no shingles: a pseudo-random signature is similar to no other.
        random_bytes = hashlib.shake_128(digest).digest(config.num_perm)
        return Sketch(digest, np.frombuffer(random_bytes, np.uint8))
    top_bits = mix_bits(minima.astype(np.uint64)) >> np.uint64(56)
    return Sketch(digest, top_bits.astype(np.uint8))


def _update_minima(minima: np.ndarray, shingles: np.ndarray, seed: int) -> None:
    """Lowers each permutation's minimum, in place, by more shingles."""
    multipliers, increments = _permutations(seed, len(minima))
    chunk_size = min(CHUNK_SHINGLES, len(shingles))
    buffer = np.empty((len(minima), chunk_size), np.uint32)
    for start in range(0, len(shingles), CHUNK_SHINGLES):
        chunk = shingles[start : start + CHUNK_SHINGLES]
        permuted = buffer[:, : len(chunk)]
        np.multiply(multipliers, chunk, out=permuted)
        np.add(permuted, increments, out=permuted)
        np.minimum(minima, permuted.min(1), out=minima)


@lru_cache(maxsize=8)
def _permutations(seed: int, num_perm: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (a, b) of `num_perm` functions x -> a x + b modulo 2^32, read-only.

    As `a` is odd, each permutes the shingles, which are hashes already.
    """
    generator = hashlib.shake_128(f"slm_fn/minhash/{seed}".encode())
    random_bytes = generator.digest(8 * num_perm)
    numbers = np.frombuffer(random_bytes, "<u4").astype(np.uint32)
    numbers = numbers.reshape(2, num_perm, 1)
    multipliers = numbers[0] | np.uint32(1)
    increments = numbers[1]
    multipliers.flags.writeable = False
    increments.flags.writeable = False
    return multipliers, increments


def mix_bits(x: np.ndarray) -> np.ndarray:
    """Returns SplitMix64's finalizer of uint64 values: every input bit affects every output bit."""
    first, second = _SPLITMIX_MULTIPLIERS
    x = (x ^ (x >> np.uint64(30))) * first
    x = (x ^ (x >> np.uint64(27))) * second
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


_OTHER = 128
"""Stands for every code point outside ASCII in the tables of the 128 ASCII characters."""
_IS_WORD = np.array([chr(code).isalnum() for code in range(128)] + [True])
_UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x2E80, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
"""Scripts without spaces (Thai, Lao, Burmese, Khmer, Chinese, Japanese): a character is a word."""

_LETTER_HASHES = np.where(_IS_WORD, mix_bits(np.arange(129, dtype=np.uint64)), np.uint64(0))


def hash_shingles(folded: str) -> np.ndarray:
    """Returns a 32-bit hash of every run of `SHINGLE_WORDS` words, or of all words if fewer.

    Words are runs of letters and digits, and of anything outside ASCII; ASCII signs and spaces
    separate them.

    Args:
        folded: a text after `fold_text`.

    Returns:
        (shingles,), uint32, in the order of the text.

    Example:
        >>> len(hash_shingles("to be, or not to be!")), len(hash_shingles("?"))
        (2, 0)
    """
    letters, separates = _hash_letters(folded)
    begins_word = letters != 0
    begins_word[1:] &= separates[:-1] | separates[1:]
    starts = np.flatnonzero(begins_word)
    if not len(starts):
        return np.zeros(0, np.uint32)
    # A word's hash is its polynomial in HASH_BASE: the terms by their position in the text are
    # summed, then divided by the power at which the word starts.
    num_characters = len(letters)
    num_bits = max(10, num_characters.bit_length())
    powers, inverses = _powers(1 << num_bits)
    terms = letters * powers[:num_characters]
    sums = np.add.reduceat(terms, starts)
    words = mix_bits(sums * inverses[starts])
    size = min(SHINGLE_WORDS, len(words))
    num_shingles = len(words) - size + 1
    shingles = np.zeros(num_shingles, np.uint64)
    for k in range(size):
        kth_words = words[k : num_shingles + k]
        shingles = shingles * HASH_BASE + kth_words
    high_bits = mix_bits(shingles) >> np.uint64(32)
    return high_bits.astype(np.uint32)


def _hash_letters(folded: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a hash of each character, 0 outside words, and whether it separates its neighbors."""
    if folded.isascii():
        ascii_codes = np.frombuffer(folded.encode(), np.uint8)
        return _LETTER_HASHES[ascii_codes], ~_IS_WORD[ascii_codes]
    codes = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), "<u4")
    table_index = np.minimum(codes, _OTHER)
    ascii_hashes = _LETTER_HASHES[table_index]
    other_hashes = mix_bits(codes.astype(np.uint64))
    letters = np.where(codes < _OTHER, ascii_hashes, other_hashes)
    separates = ~_IS_WORD[table_index]
    for first, last in _UNSPACED_SCRIPTS:
        separates |= (codes >= first) & (codes <= last)
    return letters, separates


@lru_cache(maxsize=16)
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns HASH_BASE^i and HASH_BASE^-i modulo 2^64 for i below `length`, read-only.

    All lengths up to `BLOCK_CHARACTERS` together take at most 64 MB.
    """
    inverse_base = np.uint64(pow(int(HASH_BASE), -1, 1 << 64))
    bases = np.full(length, HASH_BASE)
    inverse_bases = np.full(length, inverse_base)
    bases[0] = np.uint64(1)
    inverse_bases[0] = np.uint64(1)
    powers = np.cumprod(bases)
    inverses = np.cumprod(inverse_bases)
    powers.flags.writeable = False
    inverses.flags.writeable = False
    return powers, inverses
