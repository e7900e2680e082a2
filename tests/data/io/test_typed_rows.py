"""Typed rows: numbered, and one of the wrong type does not affect the others."""

import codecs
from pathlib import Path
from typing import Any

import msgspec
import pyarrow
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from slm_fn.data.io import typed_rows

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(VALUES, max_size=6))
def test_objects_are_yielded_and_others_reported(rows: list[Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "r.jsonl"
    problems: list[str] = []
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    found = list(typed_rows.read_rows(str(path), dict, problems.append))
    assert found == [(number, row) for number, row in enumerate(rows, 1) if isinstance(row, dict)]
    wrong = [number for number, row in enumerate(rows, 1) if not isinstance(row, dict)]
    assert [line.split(":")[0] for line in problems] == [
        f"{path}, line {number}" for number in wrong
    ]


def test_a_byte_order_mark_and_a_half_surrogate_deep_inside(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    problems: list[str] = []
    path.write_bytes(rb"""{"a": 1}
{"a": [{"b": "x\uDC00"}]}
{"a": "\\ud800"}
{"a": "\uD83D\uDE00"}
{"b": "\ud83d!"}""")
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    found = list(typed_rows.read_rows(str(path), dict, problems.append))
    assert found == [(1, {"a": 1}), (3, {"a": "\\ud800"}), (4, {"a": "\U0001f600"})]
    assert problems == [
        f"{path}, line 2: JSON is malformed: invalid utf-16 surrogate pair (byte 21)",
        f"{path}, line 5: half a surrogate pair, \\ud83d",
    ]


class Pair(msgspec.Struct):
    a: int
    b: list[str]


def test_parquet_rows_become_structs(tmp_path: Path) -> None:
    path = tmp_path / "r.parquet"
    problems: list[str] = []
    rows = [{"a": 1, "b": ["x"]}, {"a": 2, "b": None}, {"a": 3, "b": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=1)
    assert list(typed_rows.read_rows(str(path), Pair, problems.append)) == [
        (1, Pair(1, ["x"])),
        (3, Pair(3, [])),
    ]
    assert problems == [f"{path}, row 2: Expected `array`, got `null` - at `$.b`"]


def test_texts_of_one_field(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    problems: list[str] = []
    path.write_bytes(b'{"body": "one", "text": 1}\n{"text": "two"}\n')
    assert list(typed_rows.read_texts(str(path), "body", problems.append)) == [(1, "one")]
    assert problems == [f"{path}, line 2: no field `body`; there are text"]
