"""Rows that can be resumed from any number, with the problems reported between them."""

import gzip
import os

import msgspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from slm_fn.data.chat.records import Conversation, PreferencePair
from slm_fn.data.corpus import source_rows
from slm_fn.data.corpus.config import CorpusConfig, SourceConfig, resolve
from slm_fn.data.io.documents import Document


def lines(path, rows):
    data = b"".join(
        row if isinstance(row, bytes) else msgspec.json.encode(row) + b"\n" for row in rows
    )
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def complete(**settings):
    return resolve(CorpusConfig(sources={"x": SourceConfig(**settings)}))["x"]


@pytest.fixture
def sources(tmp_path):
    """A source of each kind, and how many rows it has."""
    books = tmp_path / "books"
    books.mkdir()
    for i in range(4):
        (books / f"{i}.txt").write_text(f"book {i}")
    (books / "2.txt").write_bytes(b"\xff\xfe\xfd")
    web = lines(
        tmp_path / "web.jsonl.gz", [{"text": f"page {i}"} for i in range(9)] + [b"{broken\n"]
    )
    table = pa.table({"title": ["A", "B", None], "body": ["a", None, None], "url": ["u", "v", "w"]})
    pyarrow.parquet.write_table(table, tmp_path / "wiki.parquet")
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": said},
        {"messages": said[:1]},
        b"[]\n",
        {"messages": said},
        {"messages": []},
    ]
    chat = lines(tmp_path / "chat.jsonl", rows)
    return {
        "books": (complete(path=str(books)), 3),
        "web": (complete(path=web), 10),
        "wiki": (complete(path=str(tmp_path / "wiki.parquet"), columns=("title", "body")), 3),
        "chat": (complete(path=chat, kind="chat"), 3),
        "hub": (
            complete(
                hub="json",
                data_files=lines(tmp_path / "h.jsonl", [{"text": t} for t in ("a", "", "b")]),
            ),
            3,
        ),
    }


@pytest.mark.parametrize("name", ["books", "web", "wiki", "chat", "hub"])
def test_rows_are_the_same_from_any_position(sources, name):
    source, count = sources[name]
    full = list(source_rows.read_rows(source))
    assert len(full) == count
    for done in range(count + 1):
        assert list(source_rows.read_rows(source, done)) == full[done:]


def test_rows_have_the_problems_since_the_row_before(sources):
    books, web, wiki, chat, hub = (
        list(source_rows.read_rows(source)) for source, _ in sources.values()
    )
    assert [row.item.text for row in books if row.item] == ["book 0", "book 1", "book 3"]
    assert [len(row.problems) for row in books] == [0, 0, 1]
    assert [len(row.problems) for row in web] == [0] * 9 + [1]
    assert "line 10" in web[-1].problems[0]
    assert web[-1].item is None
    assert [(row.item, row.url) for row in wiki] == [
        (Document("wiki.parquet:1", "A\n\na"), "u"),
        (Document("wiki.parquet:2", "B"), "v"),
        (None, "w"),
    ]
    assert [isinstance(row.item, Conversation) for row in chat] == [True, True, False]
    assert [(len(row.problems), len(row.dropped)) for row in chat] == [(0, 0), (1, 1), (0, 1)]
    assert [row.item and row.item.name for row in hub] == ["json:1", None, "json:3"]


def test_a_row_of_the_hub_has_a_cursor_to_resume_from(tmp_path):
    source = complete(
        hub="json",
        data_files=lines(tmp_path / "h.jsonl", [{"text": f"row {i}"} for i in range(2500)]),
    )
    full = list(source_rows.read_rows(source))
    assert [(i, row.cursor.row) for i, row in enumerate(full) if row.cursor] == [
        (1000, 1000),
        (2000, 2000),
    ]
    for done in (1001, 1999, 2001, 2499):
        cursor = [row.cursor for row in full[:done] if row.cursor][-1]
        assert list(source_rows.read_rows(source, done, cursor=cursor)) == full[done:]
    assert source_rows.pin_revision(source) == {}, "files that are named need no commit"
    local = complete(path=str(tmp_path / "h.jsonl"))
    assert source_rows.pin_revision(local) == source_rows.fingerprint_files(local)


def test_a_missing_column_is_an_error_that_lists_the_columns(sources):
    wiki = msgspec.structs.replace(sources["wiki"][0], columns=("title", "text"))
    with pytest.raises(ValueError, match="no column 'text'; there are title, body, url"):
        next(source_rows.read_rows(wiki))


def test_a_column_without_text_is_reported_and_skipped(tmp_path):
    path = lines(
        tmp_path / "a.jsonl",
        [{"a": "x", "b": "y"}, {"a": 1, "b": "y"}, {"a": "x"}, {"a": None, "b": "z"}],
    )
    found = list(source_rows.read_rows(complete(path=path, columns=("a", "b"))))
    assert [row.item and row.item.text for row in found] == ["x\n\ny", None, None, "z"]
    assert [len(row.problems) for row in found] == [0, 1, 1, 0]


def test_the_fingerprint_is_of_names_and_sizes(tmp_path):
    source = complete(path=lines(tmp_path / "a.jsonl", [{"text": "x"}]))
    was = source_rows.fingerprint_files(source)
    assert was == source_rows.fingerprint_files(source)
    assert (was["files"], was["bytes"]) == (1, 13)
    lines(tmp_path / "a.jsonl", [{"text": "xy"}])
    assert source_rows.fingerprint_files(source) != was


def test_preferences_are_not_read_as_conversations(tmp_path):
    path = lines(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ValueError, match="holds preferences"):
        list(source_rows.read_rows(complete(path=path, kind="chat")))


def test_pairs_come_from_preferences_and_from_ranked_trees(tmp_path):
    pairs = lines(
        tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a"}]
    )
    found = list(source_rows.read_rows(complete(path=pairs, kind="pairs")))
    assert [type(row.item) for row in found] == [PreferencePair, type(None)]
    assert [row.dropped for row in found] == [(), ("not of this layout",)]
    tree = [
        {"message_id": "p", "role": "prompter", "text": "a", "lang": "en", "message_tree_id": "p"}
    ]
    for rank, text in enumerate("bc"):
        tree.append(
            {
                **tree[0],
                "message_id": text,
                "parent_id": "p",
                "role": "assistant",
                "text": text,
                "rank": rank,
            }
        )
    trees = lines(tmp_path / "t.jsonl", tree)
    assert [row.item for row in source_rows.read_rows(complete(path=trees, kind="pairs"))] == [
        found[0].item
    ]
    best = next(source_rows.read_rows(complete(path=trees, kind="chat", languages=("en",)))).item
    assert [message.content for message in best.messages] == ["a", "b"]
    (other,) = source_rows.read_rows(complete(path=trees, kind="pairs", languages=("de",)))
    assert other.dropped == ("a tree in another language",)
    with pytest.raises(ValueError, match="'messages' holds conversations, no preferences"):
        list(
            source_rows.read_rows(
                complete(path=lines(tmp_path / "m.jsonl", [{"messages": []}]), kind="pairs")
            )
        )


def test_the_fingerprint_covers_odd_names_and_skips_unreadable_files(
    tmp_path,
):
    (tmp_path / "a.txt").write_text("one")
    full = source_rows.fingerprint_files(complete(path=str(tmp_path)))
    (tmp_path / "b.txt").symlink_to("nowhere")
    assert source_rows.fingerprint_files(complete(path=str(tmp_path))) == full
    (tmp_path / os.fsdecode(b"c\xff.txt")).write_text("two")
    assert source_rows.fingerprint_files(complete(path=str(tmp_path)))["files"] == 2
