"""Reading: exact bytes, sorted, without the network; every error names its file and line."""

import gzip
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from slm_fn.data.io import documents, text_files, typed_rows
from slm_fn.data.io.documents import Document
from slm_fn.data.io.text_files import CHUNK_CHARS

ODD = "\ufeffone \r\ntwo\t \r\n\r\n\n\x85\u2028\x0c last\r  "


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(
        b"".join(
            (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
        )
    )
    return path


def test_documents_are_exact_and_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"the network was used: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / "b/deep/odd.txt").write_bytes(ODD.encode())
    (tmp_path / "a.md").write_bytes(b"# A\n")
    (tmp_path / "blank.txt").write_bytes(b" \n\n")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/c.txt").write_bytes(b"not me")
    # A column whose type changes, a later column, an empty line, a raw line separator, a
    # carriage return.
    mixed = [
        {"text": ODD, "meta": {"a": 1}},
        b"",
        {"text": " "},
        {"text": "x", "meta": {"a": "one"}, "late": None},
    ]
    lines(tmp_path / "z.jsonl", *mixed, b'{"text": "raw \xe2\x80\xa8 separator"}\r')
    expected = [
        Document("a.md", "# A\n"),
        Document("b/deep/odd.txt", ODD),
        Document("z.jsonl:1", ODD),
        Document("z.jsonl:4", "x"),
        Document("z.jsonl:5", "raw \u2028 separator"),
    ]
    assert list(documents.read([tmp_path])) == expected
    files = [tmp_path / "z.jsonl", tmp_path / "b", tmp_path / "a.md", tmp_path / "b"]
    assert [d.text for d in documents.read(files)] == [d.text for d in expected]


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=3
    )
)
def test_any_text_comes_back_from_jsonl(
    texts: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines(folder / "t.jsonl", *({"text": text} for text in texts))
    (folder / "one.txt").write_bytes(texts[0].encode())
    assert [d.text for d in documents.read([folder])] == [texts[0], *texts]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"ok \xe9t\xe9", r"a\.txt: byte 3 \(0xe9\) is not UTF-8"),
        ("a.txt", b" \n", "the corpus is empty: only white space in .*a.txt"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": 3}\n',
            r"a\.jsonl, line 2: Expected `str`, got `int` - at `\$.text`",
        ),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl, line 1: no field `text`; there are txt"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', r"a\.jsonl, line 3: "),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1: "),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1: "),
        ("a.pdf", b"%PDF", r"a\.pdf is not one of \.txt, \.md, \.jsonl"),
    ],
)
def test_input_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(documents.read([tmp_path / name]))


def test_missing_and_empty_inputs_fail_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder at .*nowhere"):
        documents.read([tmp_path / "nowhere"])
    with pytest.raises(
        ValueError, match=r"the corpus is empty: no \.txt, \.md, \.jsonl, \.parquet files below"
    ):
        documents.read([tmp_path])
    with pytest.raises(ValueError, match="no files were named"):
        documents.read([])


def test_every_format_and_compression_gives_the_same_documents(tmp_path: Path) -> None:
    texts = ["one\r\n", "two é", "x" * 20_000]
    made = {
        "a.txt": texts[1].encode(),
        "b.jsonl": b"".join(
            json.dumps({"id": i, "body": text}).encode() + b"\n" for i, text in enumerate(texts)
        ),
    }
    table = pyarrow.table({"id": range(3), "body": texts})
    parquet.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    made["c.parquet"] = (tmp_path / "c.parquet").read_bytes()
    for name, data in made.items():
        (tmp_path / name).write_bytes(data)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(data))
        (tmp_path / f"{name}.zst").write_bytes(pyarrow.compress(data, codec="zstd", asbytes=True))
    expected = []
    for end in ("", ".gz", ".zst"):
        expected.append(Document(f"a.txt{end}", texts[1]))
        expected += [
            Document(f"{n}{end}:{i}", text)
            for n in ("b.jsonl", "c.parquet")
            for i, text in enumerate(texts, 1)
        ]
    assert sorted(documents.read([tmp_path], column="body")) == sorted(expected)
    for path in sorted(tmp_path.glob("[bc].*")):
        assert [row["body"] for row in typed_rows.read_dicts(path)] == texts
        assert [row["id"] for row in typed_rows.read_dicts(path, skip=1)] == [1, 2]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet", "a.md.zst"])
def test_long_texts_come_in_chunks(tmp_path: Path, name: str) -> None:
    text = (
        " \n" * (CHUNK_CHARS // 2 + 9)
        + "A line, and é.\n\n\nAnother one\n" * 80_000
        + "\t" * (CHUNK_CHARS + 9)
    )
    data = {
        "a.txt": text.encode(),
        "a.jsonl": json.dumps({"text": text}).encode(),
        "a.md.zst": pyarrow.compress(text.encode(), codec="zstd", asbytes=True),
    }
    if name in data:
        (tmp_path / name).write_bytes(data[name])
    else:
        parquet.write_table(pyarrow.table({"text": [text]}), tmp_path / name)
    found = list(documents.read([tmp_path]))
    assert [d.chunk_index for d in found] == list(range(len(found)))
    assert len({d.name for d in found}) == 1
    assert [d.text for d in found] == list(text_files.split_chunks([text]))
    assert "".join(d.text for d in found) == text


def test_a_megabyte_of_white_space_is_not_a_document(tmp_path: Path) -> None:
    seen: list[str] = []
    for end in (b"", b"\xff"):
        (tmp_path / "a.txt").write_bytes(b" \n" * CHUNK_CHARS + end)
        (tmp_path / "b.txt").write_bytes(b"b")
        assert [d.name for d in documents.read([tmp_path], seen.append)] == ["b.txt"]
    assert len(seen) == 2
    assert seen[0].endswith("a.txt: contains no text; skipped")
    assert f"byte {2 * CHUNK_CHARS} (0xff) is not UTF-8" in seen[1]


def cut_parquet(path: Path) -> None:
    parquet.write_table(pyarrow.table({"text": ["x"] * 99}), path)
    path.write_bytes(path.read_bytes()[:-30])


def column(**columns: list[int]) -> Callable[[Path], Any]:
    return lambda path: parquet.write_table(pyarrow.table(columns), path)


def wrong_utf8_parquet(path: Path) -> None:
    raw = pyarrow.array([b"kept", b"\xff", None, b"more"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"text": raw.cast(pyarrow.string(), safe=False)}), path)


def pipe_end(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        here = os.open(".", os.O_RDONLY)
        os.chdir(path.parent)  # the address of a socket is short
        end.bind(path.name)
        os.fchdir(here)
        os.close(here)


def loop(path: Path) -> None:
    path.mkdir()
    (path / "back").symlink_to(path, target_is_directory=True)
    (path / "k.txt").write_text("kept")


def twins(path: Path) -> None:
    for folder in ("one", "two"):
        (path / folder).mkdir(parents=True)
        (path / folder / "t.txt").write_text(folder)


Make = Callable[[Path], Any]
JSON_LINES = (
    rb"""{"text": "kept"}
[1]
{"body": "x"}
{"text": 3}
{"text": "\ud83d"}
{"text": "\ud83d\ude00"}
{"text": "a\u0000b"}
{"text"
nan
"""
    + b'{"text": "\xff"}\n{"text": "kept too"}\n'
    + b'{"a": ' * 5000
)
FUZZ: list[tuple[str, Make, list[str], list[str]]] = [
    ("m.txt", lambda p: p.write_bytes(b""), ["m.txt: contains no text"], []),
    ("m.jsonl", lambda p: p.write_bytes(b"\n\n"), ["m.jsonl: contains no text"], []),
    ("m.txt.gz", lambda p: p.write_bytes(b""), ["m.txt.gz: contains no text"], []),
    (
        "m.parquet",
        lambda p: p.write_bytes(b""),
        ["m.parquet: not parquet, or truncated: .*; download the file again"],
        [],
    ),
    (
        "m.parquet",
        cut_parquet,
        ["m.parquet: not parquet, or truncated: .*; download the file again"],
        [],
    ),
    (
        "m.parquet",
        wrong_utf8_parquet,
        [r"row 2: b'\\xff' is not UTF-8", "row 3: Expected `str`, got `null`"],
        ["kept", "more"],
    ),
    (
        "m.parquet",
        lambda p: parquet.write_table(pyarrow.table({"x": [1]}), p),
        ["no column `text`; there are x"],
        [],
    ),
    (
        "m.parquet",
        lambda p: parquet.write_table(pyarrow.table({"text": [1]}), p),
        ["row 1: Expected `str`, got `int"],
        [],
    ),
    (
        "m.txt.gz",
        lambda p: p.write_bytes(gzip.compress(b"kept")[:-6]),
        [
            r"m.txt.gz: the gzip stream breaks after 4 bytes \(.*\); what comes before is kept; "
            "download the file again"
        ],
        ["kept"],
    ),
    (
        "m.jsonl.gz",
        lambda p: p.write_bytes(gzip.compress(b'{"text": "kept"}\n{"te')[:-6]),
        ["m.jsonl.gz: the gzip stream breaks after 21 bytes"],
        ["kept"],
    ),
    (
        "m.txt",
        lambda p: p.write_bytes(b"kept\xe9"),
        [r"m.txt: byte 4 \(0xe9\) is not UTF-8; .* from there on"],
        ["kept"],
    ),
    ("m.txt", lambda p: p.write_bytes(b"a\0b"), [], ["a\0b"]),
    ("m.txt", lambda p: p.write_bytes(b"\x89PNG\r\n\0"), ["m.txt: binary, not text"], []),
    (
        "m.jsonl",
        lambda p: p.write_bytes(JSON_LINES),
        [
            "line 2: Expected `object`, got `array`",
            "line 3: no field `text`; there are ",
            "line 4: Expected `str`, got `int`",
            "line 5: half a surrogate pair",
            "line 8: Input data was truncated",
            "line 9: Input data was truncated",
            r"line 10: b'\\xff' is not UTF-8",
            "line 12: nested too deep",
        ],
        ["kept", "\U0001f600", "a\0b", "kept too"],
    ),
    ("m.txt", os.mkfifo, ["m.txt: a pipe, socket or device, not a file; left out"], []),
    ("m.txt", pipe_end, ["m.txt: a pipe, socket or device, not a file; left out"], []),
    (
        "m.txt",
        lambda p: p.symlink_to("m.txt"),
        ["m.txt: a broken or circular link; left out"],
        [],
    ),
    (
        "m.txt",
        lambda p: p.symlink_to("gone"),
        ["m.txt: a broken or circular link; left out"],
        [],
    ),
    ("m", loop, [], ["kept"]),
    ("m", twins, [], ["one", "two"]),
    ("m\n\udcff.txt", lambda p: p.write_bytes(b""), [r"m\\n\\udcff.txt: contains no text"], []),
]


@pytest.mark.parametrize(("name", "make", "problems", "kept"), FUZZ)
def test_each_problem_is_one_line_and_the_rest_is_kept(
    tmp_path: Path, name: str, make: Make, problems: list[str], kept: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("first")
    lines(tmp_path / "z.jsonl", {"text": "last"})
    make(tmp_path / name)
    seen: list[str] = []
    found = [d.text for d in documents.read([tmp_path], seen.append)]
    assert found == ["first", *kept, "last"]
    assert len(seen) == len(problems)
    for line, expected in zip(seen, problems, strict=True):
        assert line == line.splitlines()[0]
        assert line.startswith(str(tmp_path))
        assert re.search(expected, line), line


def test_a_folder_and_a_file_without_permission(tmp_path: Path) -> None:
    """In a child: permissions do not bind root, unless it gives that power up."""
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed/b.txt").write_text("secret")
    (tmp_path / "c.txt").write_text("secret")
    (tmp_path / "d.jsonl").write_text('{"text": "last"}')
    program = (
        "import os, json; from slm_fn.data.io import documents; seen = []\n"
        "found = [d.text for d in documents.read(['.'], seen.append)]\n"
        "print(json.dumps([found, seen]))"
    )
    (tmp_path / "closed").chmod(0)
    (tmp_path / "c.txt").chmod(0)
    tmp_path.chmod(0o755)
    bound = (
        ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    )
    done = subprocess.run(
        [*bound, sys.executable, "-c", program], capture_output=True, check=True, cwd=tmp_path
    )
    (tmp_path / "closed").chmod(0o700)
    found, seen = json.loads(done.stdout)
    assert found == ["first", "last"]
    assert sorted(seen) == [
        "./c.txt: no permission to read it; left out",
        "./closed: Permission denied; the folder is left out; "
        "change its permissions or move it away",
    ]


def test_equal_names_become_full_paths_and_a_file_is_read_once(tmp_path: Path) -> None:
    twins(tmp_path)
    (tmp_path / "one/link.txt").symlink_to(tmp_path / "one/t.txt")
    seen: list[str] = []
    inputs = [
        tmp_path / "one",
        tmp_path / "two",
        tmp_path / "one/t.txt",
        tmp_path / "two/../one/t.txt",
    ]
    found = list(documents.read(inputs, seen.append))
    assert sorted(d.text for d in found) == ["one", "two"]
    assert len({d.name for d in found}) == 2
    assert seen == ["2 files have the name t.txt; each is named by its full path instead"]


def test_no_text_at_all_is_an_error_even_with_a_callback(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    seen: list[str] = []
    with pytest.raises(
        ValueError,
        match=r"the corpus is empty: nothing in .*a\.txt; problems reported above: 1",
    ):
        list(documents.read([tmp_path], seen.append))
    assert len(seen) == 1
    with pytest.raises(FileNotFoundError, match="nowhere"):
        documents.read([tmp_path / "nowhere"], seen.append)
    with pytest.raises(ValueError, match="not JSONL or parquet"):
        typed_rows.read_dicts(tmp_path / "a.txt")
