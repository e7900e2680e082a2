"""Duplicates across all sources of a corpus: the sketches of what was kept, in memory and on disk.

Invariant: an item is compared with all that were kept before it, whichever process kept them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from slm_fn.core import files
from slm_fn.data.clean.dedup import DedupIndex
from slm_fn.data.clean.minhash import DedupConfig, Sketch

DIGESTS = ".dedup.safetensors"
"""What the names of files of digests end in."""
EXACT = "duplicate: exact"
NEAR = "duplicate: near"


class DuplicateIndex:
    """What all sources have kept so far, to find duplicates of it. It has one writer."""

    def __init__(self, near: DedupConfig) -> None:
        self.digests: set[bytes] = set()
        self.near = DedupIndex(near)

    def check_and_add(self, sketch: Sketch | None) -> str | None:
        """Return `EXACT` or `NEAR` for a duplicate; else add the sketch and return None.

        A sketch that is None belongs to a source whose duplicates are kept.
        """
        if sketch is None:
            return None
        if sketch.digest in self.digests:
            return EXACT
        if len(sketch.signature):
            if self.near.find_duplicate(sketch):
                return NEAR
            self.near.add(sketch)
        self.digests.add(sketch.digest)
        return None

    def extend(self, folders: Iterable[Path]) -> None:
        """Add what the part files of some source folders kept, from their files of digests."""
        near = []
        for folder in folders:
            for file in sorted(folder.glob(f"part_*{DIGESTS}")):
                saved = safetensors.numpy.load(file.read_bytes())
                self.digests.update(row.tobytes() for row in saved["digests"])
                if "signatures" in saved:
                    near.append(saved)
        self.near.extend(*near)


def save_digests(path: Path, digests: list[bytes], near: Mapping[str, np.ndarray]) -> None:
    """Write the digests of what a part file keeps, with signatures where near duplicates count.

    Args:
        digests: of every item in the part file.
        near: what the index of near duplicates added for the part file; it may be empty.
    """
    if len(near["digests"]):
        arrays = dict(near)
    else:
        flat = np.frombuffer(b"".join(digests), np.uint8)
        arrays = {"digests": flat.reshape(len(digests), -1)}
    files.write(path, safetensors.numpy.save(arrays))
