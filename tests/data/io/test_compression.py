"""Blocks of bytes: a broken stream gives all that comes before the break."""

import gzip
import random
import zlib
from pathlib import Path

import pytest
from compressed_files import compress

from slm_fn.data.io import compression


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_stream_that_breaks_gives_what_came_before(name: str, tmp_path: Path) -> None:
    noise = random.Random(0)
    data = b"".join(b"line %d %x\n" % (i, noise.getrandbits(64)) for i in range(30_000))
    packed = compress(data[:1000], name) + compress(
        data[1000:], name
    )  # two members, as gzip and zstd allow
    path = tmp_path / name
    path.write_bytes(packed)
    assert b"".join(compression.read_blocks(str(path))) == data
    for cut in (1, 30, 700, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        path.write_bytes(packed[:cut])
        blocks: list[bytes] = []
        with pytest.raises(
            compression.BrokenFileError,
            match=f"{name}: the .* stream breaks after .* what comes before is kept",
        ):
            blocks.extend(compression.read_blocks(str(path)))
        found = b"".join(blocks)
        assert data.startswith(found)
        if name.endswith(".gz"):
            first = zlib.decompressobj(31)
            expected = first.decompress(packed[:cut])
            expected += zlib.decompressobj(31).decompress(first.unused_data) if first.eof else b""
            assert found == expected
        else:
            assert len(found) >= len(data) * (cut / len(packed)) - (1 << 17) - 1000
    path.write_bytes(b"never compressed")
    with pytest.raises(compression.BrokenFileError, match="breaks after 0 bytes"):
        list(compression.read_blocks(str(path)))


def test_a_broken_file_that_has_become_shorter_ends(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"")[:-4])
    assert compression.read_tail(str(tmp_path / "a.txt.gz"), "gzip", 100) == b""
    (tmp_path / "b.txt").write_bytes(b"")
    assert compression.read_tail(str(tmp_path / "b.txt"), "", 100) == b""
