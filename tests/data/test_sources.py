"""Reading: exact bytes, sorted, without the network; every error names its file and line."""

import json
import socket
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data import sources
from slm_fn.data.sources import Document, Message
from slm_fn.text import chat

ODD = "\ufeffone \r\ntwo\t \r\n\r\n\n\x85\u2028\x0c last\r  "


def lines(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def test_documents_are_exact_and_sorted_wherever_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise AssertionError(f"the network was asked for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (tmp_path / "b/deep").mkdir(parents=True)
    (tmp_path / "b/deep/odd.txt").write_bytes(ODD.encode())
    (tmp_path / "a.md").write_bytes(b"# A\n")
    (tmp_path / "blank.txt").write_bytes(b" \n\n")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/c.txt").write_bytes(b"not me")
    # A column whose type changes, a column that comes later, an empty line, a raw line separator, a carriage return.
    mixed = [{"text": ODD, "meta": {"a": 1}}, b"", {"text": " "}, {"text": "x", "meta": {"a": "one"}, "late": None}]
    lines(tmp_path / "z.jsonl", *mixed, b'{"text": "raw \xe2\x80\xa8 separator"}\r')
    expected = [
        Document("a.md", "# A\n"),
        Document("b/deep/odd.txt", ODD),
        Document("z.jsonl:1", ODD),
        Document("z.jsonl:4", "x"),
        Document("z.jsonl:5", "raw \u2028 separator"),
    ]
    assert list(sources.read([tmp_path])) == expected
    files = [tmp_path / "z.jsonl", tmp_path / "b", tmp_path / "a.md", tmp_path / "b"]
    assert [d.text for d in sources.read(files)] == [d.text for d in expected]


@settings(max_examples=25, deadline=None)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=3))
def test_any_text_comes_back_from_jsonl(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    lines(folder / "t.jsonl", *({"text": text} for text in texts))
    (folder / "one.txt").write_bytes(texts[0].encode())
    assert [d.text for d in sources.read([folder])] == [texts[0], *texts]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.txt", b"ok \xe9t\xe9", r"a\.txt: byte 3 \(0xe9\) is not UTF-8"),
        ("a.txt", b" \n", "the corpus is empty: only white space in .*a.txt"),
        ("a.jsonl", b'{"text": "x"}\n{"text": 3}\n', r"a\.jsonl, line 2: Expected `str`, got `int` - at `\$.text`"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl, line 1: .*missing required field `text`"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', r"a\.jsonl, line 3: "),
        ("a.jsonl", b'{"text": "\xff"}\n', r"a\.jsonl, line 1: "),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r"a\.jsonl, line 1: "),
        ("a.pdf", b"%PDF", r"a\.pdf is not one of \.txt, \.md, \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        list(sources.read([tmp_path / name]))


def test_missing_and_empty_are_said_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder at .*nowhere"):
        sources.read([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"the corpus is empty: no \.txt, \.md, \.jsonl, \.parquet files below"):
        sources.read([tmp_path])
    with pytest.raises(ValueError, match="no files were named"):
        sources.read([])


HELLO = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def test_chat_lines(tmp_path: Path) -> None:
    path = lines(tmp_path / "c.jsonl", {"messages": HELLO, "id": 7}, b"", {"messages": HELLO[:1]})
    rows = list(sources.read_chat([path]))
    assert [row.messages for row in rows] == [
        (Message("user", "hi"), Message("assistant", "hello")),
        (Message("user", "hi"),),
    ]


def test_preference_lines_of_both_layouts(tmp_path: Path) -> None:
    listed = {"prompt": HELLO[:1], "chosen": HELLO[1:], "rejected": [{"role": "assistant", "content": "no"}]}
    path = lines(tmp_path / "p.jsonl", listed, {"prompt": "hi", "chosen": "hello", "rejected": "no"})
    first, second = sources.read_pairs([path], check=lambda messages: None)
    assert first == second
    assert first.rejected == (Message("assistant", "no"),)


def turn_taking(messages: Any) -> None:
    chat.check([chat.Message(m.role, m.content) for m in messages])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "bot", "content": "x"}]}, "line 2: Invalid enum value 'bot'"),
        ({"messages": [{"role": "user", "content": "x", "tool": 1}]}, "line 2: .*unknown field `tool`"),
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
        list(sources.read_chat([path], turn_taking))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "line 1: .*missing required field `rejected`"),
        ({"prompt": [], "chosen": "b", "rejected": "c"}, "line 1: the prompt is empty"),
        ({"prompt": "a", "chosen": [], "rejected": "c"}, "line 1: chosen must end with a message of the assistant"),
        ({"prompt": "a", "chosen": "b", "rejected": HELLO[:1]}, "line 1: rejected must end with"),
        ({"prompt": HELLO, "chosen": "b", "rejected": "c"}, "line 1: message 2 is of role assistant"),
    ],
)
def test_bad_preference_lines_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"p.jsonl, {message}"):
        list(sources.read_pairs([lines(tmp_path / "p.jsonl", row)], turn_taking))


def test_chat_data_must_be_there_and_be_jsonl(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("hi")
    with pytest.raises(ValueError, match=r"t\.txt is not JSONL"):
        list(sources.read_chat([tmp_path / "t.txt"]))
    with pytest.raises(ValueError, match=r"no data: .*e\.jsonl holds no lines"):
        list(sources.read_pairs([lines(tmp_path / "e.jsonl", b"")]))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(sources.read_chat([tmp_path / "nowhere.jsonl"]))
