"""Reading of conversations and preference pairs: every error names its file and line."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from slm_fn.data.chat import records
from slm_fn.data.io import typed_rows
from slm_fn.text import chat_template
from slm_fn.text.messages import Message


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(
        b"".join(
            (row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows
        )
    )
    return path


HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_conversations_from_jsonl(tmp_path: Path) -> None:
    path = lines(tmp_path / "c.jsonl", {"messages": HELLO, "id": 7}, b"", {"messages": HELLO[:1]})
    rows = list(records.read_chat([path]))
    assert [row.messages for row in rows] == [
        (Message("user", "hi"), Message("assistant", "hello")),
        (Message("user", "hi"),),
    ]


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.jsonl.zst", "c.parquet"])
def test_conversations_from_other_files(tmp_path: Path, name: str) -> None:
    rows = [{"messages": HELLO, "id": 7}, {"messages": HELLO[:1], "id": 8}]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / name)
    else:
        (tmp_path / name).write_bytes(
            gzip.compress(data)
            if name.endswith(".gz")
            else pyarrow.compress(data, codec="zstd", asbytes=True)
        )
    assert [len(row.messages) for row in records.read_chat([tmp_path / name])] == [2, 1]
    assert list(typed_rows.read_dicts(tmp_path / name)) == rows


def test_preference_lines_of_both_layouts(tmp_path: Path) -> None:
    listed = {
        "prompt": HELLO[:1],
        "chosen": HELLO[1:],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    path = lines(
        tmp_path / "p.jsonl", listed, {"prompt": "hi", "chosen": "hello", "rejected": "no"}
    )
    first, second = records.read_pairs([path], check=lambda messages: None)
    assert first == second
    assert first.rejected == (Message("assistant", "no"),)


def turn_taking(messages: Any) -> None:
    chat_template.check_messages(messages)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "bot", "content": "x"}]}, "line 2: Invalid enum value 'bot'"),
        (
            {"messages": [{"role": "user", "content": "x", "tool": 1}]},
            "line 2: .*unknown field `tool`",
        ),
        ({"messages": []}, "line 2: a conversation needs at least one message"),
        ({"messages": HELLO + HELLO[1:]}, "line 2: message 2 is of role assistant"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "line 2: "),
        ({"turns": []}, "line 2: .*missing required field `messages`"),
        (b"{", "line 2: "),
    ],
)
def test_bad_chat_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    path = lines(tmp_path / "c.jsonl", {"messages": HELLO}, row)
    with pytest.raises(ValueError, match=f"c.jsonl, {message}"):
        list(records.read_chat([path], turn_taking))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 1: .*missing required field `rejected`"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "line 1: the prompt is empty"),
        (
            {"prompt": "a", "chosen": [], "rejected": "c"},
            "line 1: chosen must end with a message of the assistant",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": HELLO[:1]}, "line 1: rejected must end with"),
        (
            {"prompt": HELLO, "chosen": "b", "rejected": "c"},
            "line 1: message 2 is of role assistant",
        ),
    ],
)
def test_bad_preference_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"p.jsonl, {message}"):
        list(records.read_pairs([lines(tmp_path / "p.jsonl", row)], turn_taking))


def test_chat_data_must_exist_and_have_rows(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("hi")
    with pytest.raises(ValueError, match=r"t\.txt is not JSONL"):
        list(records.read_chat([tmp_path / "t.txt"]))
    with pytest.raises(ValueError, match=r"no data: .*e\.jsonl contains no lines"):
        list(records.read_pairs([lines(tmp_path / "e.jsonl", b"")]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(records.read_chat([tmp_path / "nowhere.jsonl"]))
