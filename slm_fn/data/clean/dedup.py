"""An index of documents that finds exact and near duplicates of new ones.

A document is an *exact* duplicate if it equals an earlier one after case folding and with every run
of white space as one space (compared by 128-bit BLAKE2b). It is a *near* duplicate if the estimated
similarity of their MinHash signatures (`minhash`) is at least the threshold; every candidate that
shares a band is verified in this way. Texts without spaces or in other scripts work too.

Of a document that is split into several, each is looked up separately.

Invariant: the first occurrence is kept. Results depend on the order of the documents, the seed and
the settings, not on the process, the machine, or how often the index was saved and restored.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from slm_fn.data.clean.minhash import (
    DIGEST_BYTES,
    HASH_BASE,
    SHINGLE_WORDS,
    DedupConfig,
    Sketch,
    choose_bands,
    estimate_jaccard,
    make_sketch,
    mix_bits,
)

SIGNATURE_VERSION = 1
"""Signatures of different versions are never compared."""
INITIAL_CAPACITY = 1024
MAX_CHAIN_LENGTH = 256
"""Documents compared per band, the newest first: this bounds the time for frequent boilerplate."""
HASH_CHUNK = 4096
"""Documents hashed at once while the chains are rebuilt, which bounds memory."""


class DedupIndex:
    """The documents kept so far, in one process; `to_arrays` and `extend` save and restore them.

    Memory per document: `num_perm` bytes of signature, 16 of digest, and for each of `bands` + 1
    chains 4 bytes and another 4 to 8. By default that is 320 to 408 bytes, a quarter more while the
    chains double.

    Args:
        config: threshold and hash functions.

    Example:
        >>> index = DedupIndex(DedupConfig(threshold=0.7))
        >>> index.add("It was the best of times, it was the worst of times.")
        >>> index.find_duplicate("it was  the best of times, it was the worst of times.")
        'exact'
        >>> index.find_duplicate("It was the best of times; it was the worst of times!")
        'near'
        >>> index.find_duplicate("It was the worst.") is None
        True
    """

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.bands, self.rows_per_band = choose_bands(config.threshold, config.num_perm)
        self.num_documents = 0
        self._digests = np.zeros((INITIAL_CAPACITY, DIGEST_BYTES), np.uint8)
        self._signatures = np.zeros((INITIAL_CAPACITY, config.num_perm), np.uint8)
        self._rebuild_chains(INITIAL_CAPACITY)

    def __len__(self) -> int:
        return self.num_documents

    def find_duplicate(self, text: str | Sketch) -> str | None:
        """Returns 'exact' or 'near' if the index holds a duplicate of a document, else None.

        Args:
            text: the document, or its sketch made with the same settings.
        """
        digest, signature = self._sketch(text)
        digests = _as_array(digest)[None]
        slots = self._slots(digests, signature[None])[0]
        if self._has_digest(digest, int(slots[-1])):
            return "exact"
        if self._has_similar(signature, slots[:-1]):
            return "near"
        return None

    def _sketch(self, text: str | Sketch) -> Sketch:
        return text if isinstance(text, Sketch) else make_sketch(text, self.config)

    def _has_digest(self, digest: bytes, slot: int) -> bool:
        entry = int(self._heads[-1, slot])
        while entry:
            number = entry - 1
            if self._digests[number].tobytes() == digest:
                return True
            entry = int(self._next[number, -1])
        return False

    def _has_similar(self, signature: np.ndarray, slots: np.ndarray) -> bool:
        """Returns whether a document in the chains of these slots, one per band, is similar."""
        bands = np.arange(self.bands)
        entries = self._heads[bands, slots]
        for _ in range(MAX_CHAIN_LENGTH):
            is_entry = entries > 0
            bands = bands[is_entry]
            entries = entries[is_entry]
            if not len(entries):
                return False
            numbers = entries - 1
            similarities = estimate_jaccard(self._signatures[numbers], signature)
            if similarities.max() >= self.config.threshold:
                return True
            entries = self._next[numbers, bands]
        return False

    def add(self, text: str | Sketch) -> None:
        """Adds a document, whether it is a duplicate or not.

        Args:
            text: the document, or its sketch made with the same settings.
        """
        digest, signature = self._sketch(text)
        number = self.num_documents
        if number == len(self._digests):
            self._reserve(number + 1)
            self._rebuild_chains(len(self._digests))
        self._digests[number] = _as_array(digest)
        self._signatures[number] = signature
        self.num_documents = number + 1
        digests = self._digests[number : number + 1]
        slots = self._slots(digests, signature[None])[0]
        chains = np.arange(self.bands + 1)
        self._next[number] = self._heads[chains, slots]
        self._heads[chains, slots] = number + 1

    def to_arrays(self, start: int = 0) -> dict[str, np.ndarray]:
        """Returns the documents from number `start` on, as arrays for numpy or safetensors files.

        Returns:
            settings: JSON as uint8; digests: (documents, 16) and signatures: (documents, num_perm),
            uint8.
        """
        end = self.num_documents
        return {
            "settings": _as_array(_settings_json(self.config)).copy(),
            "digests": self._digests[start:end].copy(),
            "signatures": self._signatures[start:end].copy(),
        }

    def extend(self, *saved: Mapping[str, np.ndarray]) -> None:
        """Adds the documents of saved indexes, in the order given.

        Args:
            saved: results of `to_arrays` of indexes with the same settings.

        Raises:
            ValueError: the arrays are no saved index, or one of other settings.
        """
        for arrays in saved:
            _check_arrays(arrays, self.config)
        first = self.num_documents
        num_added = sum(len(arrays["digests"]) for arrays in saved)
        self.num_documents += num_added
        self._reserve(self.num_documents)
        for arrays in saved:
            end = first + len(arrays["digests"])
            self._digests[first:end] = arrays["digests"]
            self._signatures[first:end] = arrays["signatures"]
            first = end
        self._rebuild_chains(len(self._digests))

    def _reserve(self, num_documents: int) -> None:
        """Makes room by doubling the capacity; pages not yet written to take no memory."""
        capacity = len(self._digests)
        while capacity < num_documents:
            capacity *= 2
        self._digests = _with_capacity(self._digests, capacity)
        self._signatures = _with_capacity(self._signatures, capacity)

    def _rebuild_chains(self, capacity: int) -> None:
        """Builds the chains of all documents anew: a hash table with `capacity` slots per band.

        `_heads[chain, slot]` is the newest entry of a slot, `_next[entry - 1, chain]` the one added
        before it. Entry i + 1 is document i; 0 ends a chain.
        """
        # The old chains' memory is released before the new ones are allocated.
        self._heads = self._next = np.zeros((0, capacity), np.uint32)
        self._heads = np.zeros((self.bands + 1, capacity), np.uint32)
        self._next = np.zeros((capacity, self.bands + 1), np.uint32)
        if not self.num_documents:
            return
        slots = np.empty((self.num_documents, self.bands + 1), np.uint32)
        for start in range(0, self.num_documents, HASH_CHUNK):
            end = min(start + HASH_CHUNK, self.num_documents)
            digests = self._digests[start:end]
            signatures = self._signatures[start:end]
            slots[start:end] = self._slots(digests, signatures)
        for chain in range(self.bands + 1):
            order = np.argsort(slots[:, chain], kind="stable").astype(np.uint32)
            sorted_slots = slots[order, chain]
            entries = order + np.uint32(1)
            has_older = sorted_slots[1:] == sorted_slots[:-1]
            older_entries = np.where(has_older, entries[:-1], 0)
            self._next[order[1:], chain] = older_entries
            # Of entries with the same slot the last one is assigned, the newest.
            self._heads[chain, sorted_slots] = entries

    def _slots(self, digests: np.ndarray, signatures: np.ndarray) -> np.ndarray:
        """Returns (documents, bands + 1): the slot of each band's key, and of the digest."""
        num_documents = len(signatures)
        num_used = self.bands * self.rows_per_band
        band_rows = signatures[:, :num_used].reshape(-1, self.bands, self.rows_per_band)
        padded = np.zeros((num_documents, self.bands + 1, 8), np.uint8)
        padded[:, :-1, : self.rows_per_band] = band_rows
        padded[:, -1] = digests[:, :8]
        keys = padded.view("<u8")[..., 0].astype(np.uint64)
        bands = np.arange(self.bands + 1, dtype=np.uint64)
        hashes = mix_bits(keys + bands * HASH_BASE)
        capacity = self._heads.shape[1]
        return hashes & np.uint64(capacity - 1)


def _with_capacity(array: np.ndarray, capacity: int) -> np.ndarray:
    if capacity <= len(array):
        return array
    larger = np.zeros((capacity, array.shape[1]), array.dtype)
    larger[: len(array)] = array
    return larger


def _check_arrays(arrays: Mapping[str, np.ndarray], config: DedupConfig) -> None:
    missing = {"settings", "digests", "signatures"} - set(arrays)
    if missing:
        names = ", ".join(sorted(missing))
        raise ValueError(f"not a saved index of duplicates: it lacks {names}; prepare again")
    settings = arrays["settings"].tobytes()
    if settings != _settings_json(config):
        saved_settings = settings[:200].decode(errors="replace")
        raise ValueError(
            f"the index of duplicates was saved with {saved_settings}, "
            f"this run has {_settings_json(config).decode()}; prepare again, or keep the settings"
        )
    digests = arrays["digests"]
    signatures = arrays["signatures"]
    expected = ((len(digests), DIGEST_BYTES), (len(digests), config.num_perm))
    is_uint8 = digests.dtype == np.uint8 and signatures.dtype == np.uint8
    if (digests.shape, signatures.shape) != expected or not is_uint8:
        raise ValueError(
            f"the saved index of duplicates is damaged: digests {digests.dtype} {digests.shape} "
            f"and signatures {signatures.dtype} {signatures.shape} are not bytes of {expected[0]} "
            f"and {expected[1]}; prepare again"
        )


def _settings_json(config: DedupConfig) -> bytes:
    return msgspec.json.encode(
        {
            "version": SIGNATURE_VERSION,
            "shingle": SHINGLE_WORDS,
            **msgspec.structs.asdict(config),
        }
    )


def _as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
