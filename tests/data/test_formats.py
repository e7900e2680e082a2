"""Blocks, texts, lines and pieces: exact whatever the sizes; broken streams give what came before the break."""

import gzip
import random
import tracemalloc
import zlib
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from slm_fn.data import formats
from slm_fn.text.patterns import PATTERNS

regex = pytest.importorskip("regex")
SPACED = st.text(st.sampled_from("ab1é字'.,。\"- \t\u3000\u00a0\x1c\n\n\n\r\u2028\U0001f600s"), max_size=60)


def compressed(data: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(data)
    return pyarrow.compress(data, codec="zstd", asbytes=True) if name.endswith(".zst") else data


def safe(text: str, at: int) -> bool:
    """Whether a cut before character `at` is one that no pattern crosses, said another way than in the code."""
    before, after = text[at - 1], text[at]
    line = before == "\n" and at > 1 and not text[at - 2].isspace() and not after.isspace()
    word = not before.isspace() and (after in " \t\u3000" or (before.isalnum() and after in "\n。，、！？；"))
    return line or word


@settings(max_examples=400, deadline=None)
@given(blocks=st.lists(SPACED, max_size=4), limit=st.integers(1, 40))
def test_pieces_join_to_the_text_and_depend_on_it_alone(blocks: list[str], limit: int) -> None:
    text = "".join(blocks)
    found = list(formats.pieces(blocks, limit))
    assert "".join(found) == text
    assert all(0 < len(piece) <= limit for piece in found)
    assert found == list(formats.pieces([text], limit)) == list(formats.pieces(list(text), limit))


@settings(max_examples=1000, deadline=None)
@given(text=SPACED, limit=st.integers(4, 40))
def test_no_split_pattern_crosses_a_cut_while_there_is_a_safe_place(text: str, limit: int) -> None:
    pieces, start, forced = list(formats.pieces([text], limit)), 0, False
    for piece in pieces[:-1]:
        rest, start = text[start:], start + len(piece)
        if not safe(rest, len(piece)):
            forced = True
            assert not any(safe(rest, at) for at in range(2, limit + 1) if at < len(rest))
    for name, pattern in PATTERNS.items():
        whole = regex.findall(pattern, text)
        assert forced or [part for piece in pieces for part in regex.findall(pattern, piece)] == whole, name


def test_long_pieces_end_at_a_line_or_a_word() -> None:
    prose = "A line of some words.\n" * 200_000
    assert all(piece.endswith(".\n") and len(piece) > 1_000_000 for piece in list(formats.pieces([prose]))[:-1])
    paragraphs = "A line of some words.\n\n" * 100_000
    assert all(piece[0] == " " for piece in list(formats.pieces([paragraphs]))[1:])
    assert [len(piece) for piece in formats.pieces(["x" * (formats.PIECE + 5)])] == [formats.PIECE, 5]


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.one_of(st.binary(max_size=12), st.sampled_from([b"\n", b"\n\n", b" \n", b"\r\n", b"{}\n", b"\xe2\x80\xa8"]))
    ).map(b"".join),
    block=st.integers(1, 20),
    limit=st.integers(1, 20),
    name=st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"]),
)
def test_lines_are_those_between_line_feeds(
    data: bytes, block: int, limit: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(compressed(data, name))
    told: list[str] = []
    expected = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert list(formats.lines(str(path), told.append, 1 << 20, block)) == expected
    assert told == []
    found = list(formats.lines(str(path), told.append, limit, block))
    assert found == [(number, line) for number, line in expected if len(line) <= limit]
    long = [number for number, line in enumerate(data.split(b"\n"), 1) if len(line) > limit]
    assert told == [f"{path}, line {number}: longer than {limit} bytes; left out; split it" for number in long]


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(st.one_of(st.text(max_size=8).map(lambda t: t.encode("utf-8", "ignore")), st.binary(max_size=2))),
    block=st.integers(1, 20),
)
def test_text_is_what_comes_before_the_first_wrong_byte(
    data: list[bytes], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = b"".join(data).replace(b"\0", b"")
    path = tmp_path_factory.getbasetemp() / "a.txt"
    path.write_bytes(whole)
    told: list[str] = []
    found = "".join(formats.text(str(path), told.append, block))
    good = whole.decode(errors="surrogateescape")
    wrong = next((at for at, character in enumerate(good) if "\udc80" <= character <= "\udcff"), len(good))
    place = len(good[:wrong].encode())
    assert found == good[:wrong]
    assert len(told) == (place < len(whole))
    assert all(f"byte {place} (0x{whole[place]:02x}) is not UTF-8" in line for line in told)


def test_nul_is_text_and_binary_is_not(tmp_path: Path) -> None:
    told: list[str] = []
    path = tmp_path / "a.txt"
    path.write_bytes("a\0b é".encode())
    assert list(formats.text(str(path), told.append)) == ["a\0b é"]
    assert told == []
    path.write_bytes(b"\x7fELF\x02\x01\x00\x00\xff\xfe rest")
    assert list(formats.text(str(path), told.append)) == []
    assert told == [f"{path}: not text but binary: a NUL, and byte 8 (0xff) is not UTF-8; left out"]


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst"])
def test_a_stream_that_breaks_gives_what_came_before(name: str, tmp_path: Path) -> None:
    noise = random.Random(0)
    data = b"".join(b"line %d %x\n" % (i, noise.getrandbits(64)) for i in range(30_000))
    packed = compressed(data[:1000], name) + compressed(data[1000:], name)  # two members, as gzip and zstd allow
    path = tmp_path / name
    path.write_bytes(packed)
    assert b"".join(formats.blocks(str(path))) == data
    for cut in (1, 30, 700, len(packed) // 2, len(packed) - 9, len(packed) - 1):
        path.write_bytes(packed[:cut])
        blocks: list[bytes] = []
        with pytest.raises(formats.Broken, match=f"{name}: the .* stream breaks after .* what comes before is kept"):
            blocks.extend(formats.blocks(str(path)))
        found = b"".join(blocks)
        assert data.startswith(found)
        if name.endswith(".gz"):
            first = zlib.decompressobj(31)
            whole = first.decompress(packed[:cut])
            whole += zlib.decompressobj(31).decompress(first.unused_data) if first.eof else b""
            assert found == whole
        else:
            assert len(found) >= len(data) * (cut / len(packed)) - (1 << 17) - 1000
    path.write_bytes(b"never compressed")
    with pytest.raises(formats.Broken, match="breaks after 0 bytes"):
        list(formats.blocks(str(path)))


def test_lines_of_a_broken_stream_are_whole_ones_and_told_once(tmp_path: Path) -> None:
    path, told = tmp_path / "a.jsonl.gz", []  # type: tuple[Path, list[str]]
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    path.write_bytes(packed[: len(packed) // 2])
    found = [line for _, line in formats.lines(str(path), told.append)]
    assert len(found) > 1000
    assert found == [b'{"text": "%d"}' % i for i in range(len(found))]
    assert len(told) == 1


def test_parquet_by_row_groups_where_one_is_corrupt(tmp_path: Path) -> None:
    path, told = tmp_path / "a.parquet", []  # type: tuple[Path, list[str]]
    texts = [f"row {i} {random.Random(i).getrandbits(4000):x}" for i in range(300)]
    parquet.write_table(
        pyarrow.table({"other": range(300), "text": texts}), path, row_group_size=100, use_dictionary=False
    )
    assert [v for _, values in formats.batches(str(path), "text", told.append) for v in values] == texts
    rows = [row for _, values in formats.batches(str(path), None, told.append) for row in values]
    assert rows[299] == {"other": 299, "text": texts[299]}
    assert told == []
    data = bytearray(path.read_bytes())
    column = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = [v for _, values in formats.batches(str(path), "text", told.append) for v in values]
    assert found == texts[:100] + texts[200:]
    assert len(told) == 1
    assert told[0].startswith(f"{path}: rows 101 to 200 cannot be read: ")
    path.write_bytes(data[:-100])
    assert list(formats.batches(str(path), "text", told.append)) == []
    assert "not parquet, or cut off" in told[1]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_parquet_and_a_column_that_is_not_there(tmp_path: Path, suffix: str) -> None:
    plain, path, told = tmp_path / "a.parquet", tmp_path / f"b.parquet{suffix}", []  # type: tuple[Path, Path, list[str]]
    parquet.write_table(pyarrow.table({"text": ["a", "b"]}), plain)
    path.write_bytes(compressed(plain.read_bytes(), suffix))
    assert list(formats.batches(str(path), "text", told.append)) == [(1, ["a", "b"])]
    assert list(formats.batches(str(path), "body", told.append)) == []
    assert told == [f"{path}: no column `body`; there are text"]
    path.write_bytes(path.read_bytes()[:-20])
    assert list(formats.batches(str(path), "text", told.append)) == []
    assert "stream breaks" in told[1]


def test_a_line_of_100_mb_is_told_and_never_held(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    told: list[str] = []
    tracemalloc.start()
    found = [line for _, line in formats.lines(str(path), told.append)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b'{"text": "first"}', b'{"text": "last"}']
    assert told == [f"{path}, line 2: longer than {formats.LINE} bytes; left out; split it"]
    assert peak < formats.LINE + 8 * formats.BLOCK


def test_a_long_text_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "long.txt.zst"
    path.write_bytes(compressed(b"One line of a text.\n" * 15_000_000, path.name))  # 300 MB
    tracemalloc.start()
    size = sum(len(piece) for piece in formats.pieces(formats.text(str(path), pytest.fail)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 300_000_000
    assert peak < 6 * formats.PIECE


def test_what_a_name_says() -> None:
    assert formats.kind("a/B.TXT") == ("text", "")
    assert formats.kind("a.md.zst") == ("text", "zstd")
    assert formats.kind("a.parquet.gz") == ("parquet", "gzip")
    assert formats.kind("a.json") is formats.kind("a.gz") is formats.kind("txt") is None
    assert formats.shown("a\nb\udcff") == "a\\nb\\udcff"


def test_a_broken_file_that_has_become_shorter_ends(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"")[:-4])
    assert formats._rest(str(tmp_path / "a.txt.gz"), "gzip", 100) == b""
    (tmp_path / "b.txt").write_bytes(b"")
    assert formats._rest(str(tmp_path / "b.txt"), "", 100) == b""
