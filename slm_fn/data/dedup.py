"""Duplicates found as documents pass: exact by BLAKE2b, near by MinHash signatures behind an index of their bands.

A document is *exactly* another when both are equal after case folding with every run of white space as one space
(BLAKE2b, 128 bits). It is *near* another when the similarity that their signatures tell of (`minhash`) is at least the
threshold; every candidate that the bands bring up is so verified. Texts without spaces or of another script work too.

A document that arrives in pieces is one whose pieces are looked up one by one.

Invariant: the first occurrence is kept; what is found depends on the order of the documents, the seed and the settings,
not on the process, the machine, or how often the index was saved and loaded between.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from slm_fn.data.minhash import BASE, DIGEST, SHINGLE, DedupConfig, Sketch, layout, mixed, similarity, sketch

VERSION = 1
"""Of the signatures: those of another version are never compared with these."""
FIRST_SLOTS = 1024
LONGEST_CHAIN = 256
"""So many documents per band are compared, the newest first: boilerplate of a million pages must not take a day."""
CHUNK = 4096


class Index:
    """What was kept so far. One owner adds to it; `save` and `load` carry it over to another process.

    Memory per kept document: `num_perm` bytes of signature, 16 of digest, and for each of `bands` + 1 chains 4 bytes
    and another 4 to 8: by default 320 to 408 bytes, a quarter more while the chains double.

    Example:
        >>> index = Index(DedupConfig(threshold=0.7))
        >>> index.add("It was the best of times, it was the worst of times.")
        >>> index.seen("it was  the best of times, it was the worst of times.")
        'exact'
        >>> index.seen("It was the best of times; it was the worst of times!"), index.seen("It was the worst.")
        ('near', None)
    """

    def __init__(self, config: DedupConfig) -> None:
        self.config = config
        self.bands, self.rows = layout(config.threshold, config.num_perm)
        self.count = 0
        self._digests = np.zeros((FIRST_SLOTS, DIGEST), np.uint8)
        self._signatures = np.zeros((FIRST_SLOTS, config.num_perm), np.uint8)
        self._chain(FIRST_SLOTS)

    def __len__(self) -> int:
        return self.count

    def seen(self, text: str | Sketch) -> str | None:
        """'exact', 'near', or None where no document that was added is like this one."""
        digest, signature = text if isinstance(text, Sketch) else sketch(text, self.config)
        slots = self._slots(_bytes(digest)[None], signature[None])[0]
        entry = int(self._heads[-1, slots[-1]])
        while entry:
            if self._digests[entry - 1].tobytes() == digest:
                return "exact"
            entry = int(self._next[entry - 1, -1])
        bands = np.arange(self.bands)
        entries = self._heads[bands, slots[:-1]]
        for _ in range(LONGEST_CHAIN):
            bands, entries = bands[entries > 0], entries[entries > 0]
            if not len(entries):
                return None
            if similarity(self._signatures[entries - 1], signature).max() >= self.config.threshold:
                return "near"
            entries = self._next[entries - 1, bands]
        return None

    def add(self, text: str | Sketch) -> None:
        """Remember a document."""
        digest, signature = text if isinstance(text, Sketch) else sketch(text, self.config)
        if self.count == len(self._digests):
            self._reserve(self.count + 1)
            self._chain(len(self._digests))
        self._digests[self.count], self._signatures[self.count] = _bytes(digest), signature
        self.count += 1
        slots = self._slots(self._digests[self.count - 1 : self.count], signature[None])[0]
        chains = np.arange(self.bands + 1)
        self._next[self.count - 1] = self._heads[chains, slots]
        self._heads[chains, slots] = self.count

    def save(self, start: int = 0) -> dict[str, np.ndarray]:
        """What was added from the `start`-th document on, as arrays that `numpy.savez` or safetensors can hold."""
        return {
            "settings": _bytes(_settings(self.config)).copy(),
            "digests": self._digests[start : self.count].copy(),
            "signatures": self._signatures[start : self.count].copy(),
        }

    def extend(self, *saved: Mapping[str, np.ndarray]) -> None:
        """Remember, after what is here, what other indexes saved, in the order given.

        Raises:
            ValueError: the arrays are no saved index, or one of other settings.
        """
        for arrays in saved:
            _check(arrays, self.config)
        first, self.count = self.count, self.count + sum(len(arrays["digests"]) for arrays in saved)
        self._reserve(self.count)
        for arrays in saved:
            part = slice(first, first := first + len(arrays["digests"]))
            self._digests[part], self._signatures[part] = arrays["digests"], arrays["signatures"]
        self._chain(len(self._digests))

    def _reserve(self, least: int) -> None:
        """Room for `least` documents, doubled until it suffices; pages not yet written to take no memory."""
        slots = len(self._digests)
        while slots < least:
            slots *= 2
        for name in ("_digests", "_signatures"):
            old = getattr(self, name)
            if slots > len(old):
                new = np.zeros((slots, old.shape[1]), np.uint8)
                new[: len(old)] = old
                setattr(self, name, new)

    def _chain(self, slots: int) -> None:
        """Chains anew for all documents: in each slot the newest first, every entry pointing to the one before it."""
        self._heads = self._next = np.zeros((0, slots), np.uint32)  # the old ones' memory, before there are new ones
        self._heads = np.zeros((self.bands + 1, slots), np.uint32)
        self._next = np.zeros((slots, self.bands + 1), np.uint32)
        if not self.count:
            return
        places = np.empty((self.count, self.bands + 1), np.uint32)
        for start in range(0, self.count, CHUNK):
            part = slice(start, min(start + CHUNK, self.count))
            places[part] = self._slots(self._digests[part], self._signatures[part])
        for chain in range(self.bands + 1):
            order = np.argsort(places[:, chain], kind="stable").astype(np.uint32)
            place = places[order, chain]
            self._next[order[1:], chain] = np.where(place[1:] == place[:-1], order[:-1] + np.uint32(1), 0)
            self._heads[chain, place] = order + np.uint32(1)  # of equal places the last is assigned, the newest

    def _slots(self, digests: np.ndarray, signatures: np.ndarray) -> np.ndarray:
        """(documents, bands + 1): the slot of each band's key, and of the digest."""
        padded = np.zeros((len(signatures), self.bands + 1, 8), np.uint8)
        padded[:, :-1, : self.rows] = signatures[:, : self.bands * self.rows].reshape(-1, self.bands, self.rows)
        padded[:, -1] = digests[:, :8]
        keys = padded.view("<u8")[..., 0].astype(np.uint64) + np.arange(self.bands + 1, dtype=np.uint64) * BASE
        return mixed(keys) & np.uint64(self._heads.shape[1] - 1)


def load(config: DedupConfig, *saved: Mapping[str, np.ndarray]) -> Index:
    """An index that goes on where the saved ones ended, in the order given.

    Raises:
        ValueError: as `Index.extend`.
    """
    index = Index(config)
    index.extend(*saved)
    return index


def _check(saved: Mapping[str, np.ndarray], config: DedupConfig) -> None:
    missing = {"settings", "digests", "signatures"} - set(saved)
    if missing:
        raise ValueError(f"no saved index of duplicates: it lacks {', '.join(sorted(missing))}; prepare again")
    settings, digests, signatures = (saved[name] for name in ("settings", "digests", "signatures"))
    if settings.tobytes() != _settings(config):
        raise ValueError(
            f"the index of duplicates was saved with {settings.tobytes()[:200].decode(errors='replace')}, "
            f"this run has {_settings(config).decode()}; prepare again, or keep the settings"
        )
    want = (len(digests), DIGEST), (len(digests), config.num_perm)
    if (digests.shape, signatures.shape) != want or {digests.dtype, signatures.dtype} != {np.dtype(np.uint8)}:
        raise ValueError(
            f"the saved index of duplicates is damaged: digests {digests.dtype} {digests.shape} and signatures "
            f"{signatures.dtype} {signatures.shape} are not bytes of {want[0]} and {want[1]}; prepare again"
        )


def _settings(config: DedupConfig) -> bytes:
    return msgspec.json.encode({"version": VERSION, "shingle": SHINGLE, **msgspec.structs.asdict(config)})


def _bytes(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)
