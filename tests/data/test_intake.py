"""data/intake.py: rows that can be counted from anywhere, and what was told between them."""

import gzip
import os

import msgspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from slm_fn.data import intake
from slm_fn.data.corpus import CorpusConfig, SourceConfig, resolve
from slm_fn.data.sources import Conversation, Document, Preference


def lines(path, rows):
    data = b"".join(row if isinstance(row, bytes) else msgspec.json.encode(row) + b"\n" for row in rows)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def complete(**told):
    return resolve(CorpusConfig(sources={"x": SourceConfig(**told)}))["x"]


@pytest.fixture
def sources(tmp_path):
    """A source of each kind, and how many rows it has."""
    books = tmp_path / "books"
    books.mkdir()
    for i in range(4):
        (books / f"{i}.txt").write_text(f"book {i}")
    (books / "2.txt").write_bytes(b"\xff\xfe\xfd")
    web = lines(tmp_path / "web.jsonl.gz", [{"text": f"page {i}"} for i in range(9)] + [b"{broken\n"])
    table = pa.table({"title": ["A", "B", None], "body": ["a", None, None], "url": ["u", "v", "w"]})
    pyarrow.parquet.write_table(table, tmp_path / "wiki.parquet")
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": said}, {"messages": said[:1]}, b"[]\n", {"messages": said}, {"messages": []}]
    chat = lines(tmp_path / "chat.jsonl", rows)
    return {
        "books": (complete(path=str(books)), 3),
        "web": (complete(path=web), 10),
        "wiki": (complete(path=str(tmp_path / "wiki.parquet"), columns=("title", "body")), 3),
        "chat": (complete(path=chat, kind="chat"), 3),
        "hub": (complete(hub="json", data_files=lines(tmp_path / "h.jsonl", [{"text": t} for t in ("a", "", "b")])), 3),
    }


@pytest.mark.parametrize("name", ["books", "web", "wiki", "chat", "hub"])
def test_rows_are_the_same_from_anywhere(sources, name):
    source, count = sources[name]
    whole = list(intake.rows(source))
    assert len(whole) == count
    for done in range(count + 1):
        assert list(intake.rows(source, done)) == whole[done:]


def test_rows_hold_what_was_told_since_the_one_before(sources):
    books, web, wiki, chat, hub = (list(intake.rows(source)) for source, _ in sources.values())
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


def test_a_row_of_the_hub_says_where_to_go_on(tmp_path):
    source = complete(hub="json", data_files=lines(tmp_path / "h.jsonl", [{"text": f"row {i}"} for i in range(2500)]))
    whole = list(intake.rows(source))
    assert [(i, row.place.row) for i, row in enumerate(whole) if row.place] == [(1000, 1000), (2000, 2000)]
    for done in (1001, 1999, 2001, 2499):
        place = [row.place for row in whole[:done] if row.place][-1]
        assert list(intake.rows(source, done, place=place)) == whole[done:]
    assert intake.pin(source) == {}, "files that are named need no commit"
    local = complete(path=str(tmp_path / "h.jsonl"))
    assert intake.pin(local) == intake.identity(local)


def test_a_column_that_is_not_there_names_those_that_are(sources):
    wiki = msgspec.structs.replace(sources["wiki"][0], columns=("title", "text"))
    with pytest.raises(ValueError, match="no column 'text'; there are title, body, url"):
        next(intake.rows(wiki))


def test_a_column_that_holds_no_text_is_told_and_passed_over(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"a": "x", "b": "y"}, {"a": 1, "b": "y"}, {"a": "x"}, {"a": None, "b": "z"}])
    found = list(intake.rows(complete(path=path, columns=("a", "b"))))
    assert [row.item and row.item.text for row in found] == ["x\n\ny", None, None, "z"]
    assert [len(row.problems) for row in found] == [0, 1, 1, 0]


def test_files_are_told_apart_by_name_and_size(tmp_path):
    source = complete(path=lines(tmp_path / "a.jsonl", [{"text": "x"}]))
    was = intake.identity(source)
    assert was == intake.identity(source)
    assert (was["files"], was["bytes"]) == (1, 13)
    lines(tmp_path / "a.jsonl", [{"text": "xy"}])
    assert intake.identity(source) != was


def test_preferences_are_no_conversations(tmp_path):
    path = lines(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    with pytest.raises(ValueError, match="holds preferences"):
        list(intake.rows(complete(path=path, kind="chat")))


def test_pairs_come_from_preferences_and_from_ranked_trees(tmp_path):
    pairs = lines(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a"}])
    found = list(intake.rows(complete(path=pairs, kind="pairs")))
    assert [type(row.item) for row in found] == [Preference, type(None)]
    assert [row.dropped for row in found] == [(), ("not of this layout",)]
    tree = [{"message_id": "p", "role": "prompter", "text": "a", "lang": "en", "message_tree_id": "p"}]
    for rank, text in enumerate("bc"):
        tree.append({**tree[0], "message_id": text, "parent_id": "p", "role": "assistant", "text": text, "rank": rank})
    trees = lines(tmp_path / "t.jsonl", tree)
    assert [row.item for row in intake.rows(complete(path=trees, kind="pairs"))] == [found[0].item]
    best = next(intake.rows(complete(path=trees, kind="chat", languages=("en",)))).item
    assert [message.content for message in best.messages] == ["a", "b"]
    (other,) = intake.rows(complete(path=trees, kind="pairs", languages=("de",)))
    assert other.dropped == ("a tree in another language",)
    with pytest.raises(ValueError, match="'messages' holds conversations, no preferences"):
        list(intake.rows(complete(path=lines(tmp_path / "m.jsonl", [{"messages": []}]), kind="pairs")))


def test_files_that_cannot_be_read_or_have_odd_names_do_not_keep_the_others_from_being_known(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    whole = intake.identity(complete(path=str(tmp_path)))
    (tmp_path / "b.txt").symlink_to("nowhere")
    assert intake.identity(complete(path=str(tmp_path))) == whole
    (tmp_path / os.fsdecode(b"c\xff.txt")).write_text("two")
    assert intake.identity(complete(path=str(tmp_path)))["files"] == 2
