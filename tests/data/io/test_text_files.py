"""Texts, lines and chunks: exact whatever the sizes, and never in memory full."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from compressed_files import compress
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.io import compression, text_files
from slm_fn.text.patterns import SPLIT_PATTERNS

regex = pytest.importorskip("regex")
SPACED = st.text(
    st.sampled_from("ab1é字'.,。\"- \t\u3000\u00a0\x1c\n\n\n\r\u2028\U0001f600s"), max_size=60
)


def is_safe(text: str, at: int) -> bool:
    """Whether no pattern crosses a boundary before character `at`, by other means than the code."""
    before, after = text[at - 1], text[at]
    line = before == "\n" and at > 1 and not text[at - 2].isspace() and not after.isspace()
    word = not before.isspace() and (
        after in " \t\u3000" or (before.isalnum() and after in "\n。，、！？；")
    )
    return line or word


@settings(max_examples=400, deadline=None)
@given(blocks=st.lists(SPACED, max_size=4), limit=st.integers(1, 40))
def test_chunks_join_to_the_text_and_depend_on_it_alone(blocks: list[str], limit: int) -> None:
    text = "".join(blocks)
    found = list(text_files.split_chunks(blocks, limit))
    assert "".join(found) == text
    assert all(0 < len(chunk) <= limit for chunk in found)
    assert (
        found
        == list(text_files.split_chunks([text], limit))
        == list(text_files.split_chunks(list(text), limit))
    )


@settings(max_examples=1000, deadline=None)
@given(text=SPACED, limit=st.integers(4, 40))
def test_no_split_pattern_crosses_a_boundary_while_a_safe_one_exists(text: str, limit: int) -> None:
    chunks = list(text_files.split_chunks([text], limit))
    start = 0
    is_forced = False
    for chunk in chunks[:-1]:
        rest = text[start:]
        start += len(chunk)
        if not is_safe(rest, len(chunk)):
            is_forced = True
            assert not any(is_safe(rest, at) for at in range(2, limit + 1) if at < len(rest))
    for name, pattern in SPLIT_PATTERNS.items():
        full = regex.findall(pattern, text)
        assert (
            is_forced
            or [part for chunk in chunks for part in regex.findall(pattern, chunk)] == full
        ), name


def test_long_chunks_end_at_a_line_or_a_word() -> None:
    prose = "A line of some words.\n" * 200_000
    assert all(
        chunk.endswith(".\n") and len(chunk) > 1_000_000
        for chunk in list(text_files.split_chunks([prose]))[:-1]
    )
    paragraphs = "A line of some words.\n\n" * 100_000
    assert all(chunk[0] == " " for chunk in list(text_files.split_chunks([paragraphs]))[1:])
    assert [
        len(chunk) for chunk in text_files.split_chunks(["x" * (text_files.CHUNK_CHARS + 5)])
    ] == [
        text_files.CHUNK_CHARS,
        5,
    ]


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.one_of(
            st.binary(max_size=12),
            st.sampled_from([b"\n", b"\n\n", b" \n", b"\r\n", b"{}\n", b"\xe2\x80\xa8"]),
        )
    ).map(b"".join),
    block=st.integers(1, 20),
    limit=st.integers(1, 20),
    name=st.sampled_from(["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"]),
)
def test_lines_end_at_line_feeds_only(
    data: bytes, block: int, limit: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(compress(data, name))
    problems: list[str] = []
    expected = [(number, line) for number, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert list(text_files.read_lines(str(path), problems.append, 1 << 20, block)) == expected
    assert problems == []
    found = list(text_files.read_lines(str(path), problems.append, limit, block))
    assert found == [(number, line) for number, line in expected if len(line) <= limit]
    long = [number for number, line in enumerate(data.split(b"\n"), 1) if len(line) > limit]
    assert problems == [
        f"{path}, line {number}: longer than {limit} bytes; left out; split the line"
        for number in long
    ]


@settings(max_examples=200, deadline=None)
@given(
    data=st.lists(
        st.one_of(
            st.text(max_size=8).map(lambda t: t.encode("utf-8", "ignore")), st.binary(max_size=2)
        )
    ),
    block=st.integers(1, 20),
)
def test_text_ends_before_the_first_invalid_byte(
    data: list[bytes], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    full = b"".join(data).replace(b"\0", b"")
    path = tmp_path_factory.getbasetemp() / "a.txt"
    path.write_bytes(full)
    problems: list[str] = []
    found = "".join(text_files.read_text(str(path), problems.append, block))
    good = full.decode(errors="surrogateescape")
    wrong = next(
        (at for at, character in enumerate(good) if "\udc80" <= character <= "\udcff"), len(good)
    )
    position = len(good[:wrong].encode())
    assert found == good[:wrong]
    assert len(problems) == (position < len(full))
    assert all(
        f"byte {position} (0x{full[position]:02x}) is not UTF-8" in line for line in problems
    )


def test_nul_is_text_and_binary_is_not(tmp_path: Path) -> None:
    problems: list[str] = []
    path = tmp_path / "a.txt"
    path.write_bytes("a\0b é".encode())
    assert list(text_files.read_text(str(path), problems.append)) == ["a\0b é"]
    assert problems == []
    path.write_bytes(b"\x7fELF\x02\x01\x00\x00\xff\xfe rest")
    assert list(text_files.read_text(str(path), problems.append)) == []
    assert problems == [
        f"{path}: binary, not text: it has a NUL, and byte 8 (0xff) is not UTF-8; left out"
    ]


def test_a_broken_stream_gives_complete_lines_and_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    problems: list[str] = []
    packed = gzip.compress(b"".join(b'{"text": "%d"}\n' % i for i in range(5000)))
    path.write_bytes(packed[: len(packed) // 2])
    found = [line for _, line in text_files.read_lines(str(path), problems.append)]
    assert len(found) > 1000
    assert found == [b'{"text": "%d"}' % i for i in range(len(found))]
    assert len(problems) == 1


def test_a_line_of_100_mb_is_reported_and_never_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    problems: list[str] = []
    tracemalloc.start()
    found = [line for _, line in text_files.read_lines(str(path), problems.append)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [b'{"text": "first"}', b'{"text": "last"}']
    assert problems == [
        f"{path}, line 2: longer than {text_files.MAX_LINE_BYTES} bytes; left out; split the line"
    ]
    assert peak < text_files.MAX_LINE_BYTES + 8 * compression.BLOCK_BYTES


def test_a_long_text_is_never_in_memory_at_once(tmp_path: Path) -> None:
    path = tmp_path / "long.txt.zst"
    path.write_bytes(compress(b"One line of a text.\n" * 15_000_000, path.name))  # 300 MB
    tracemalloc.start()
    size = sum(
        len(chunk)
        for chunk in text_files.split_chunks(text_files.read_text(str(path), pytest.fail))
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 300_000_000
    assert peak < 6 * text_files.CHUNK_CHARS
