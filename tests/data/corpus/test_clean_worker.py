"""Cleaning of texts, chunks and conversations, in this process and in worker processes."""

from functools import partial

import msgspec
import pytest

from slm_fn.data.chat import filters
from slm_fn.data.chat.records import Conversation, PreferencePair
from slm_fn.data.clean import cleaning
from slm_fn.data.clean.minhash import DedupConfig
from slm_fn.data.clean.rules import Rule
from slm_fn.data.corpus.clean_worker import CleanWorker, clean_rows
from slm_fn.data.corpus.source_rows import SourceRow
from slm_fn.data.io.documents import Document
from slm_fn.text.messages import Message
from slm_fn.text.normalize import normalize

NORMALIZE = Rule("normalize", partial(normalize, alphabet="unicode", lowercase=False))


def talk(*texts):
    return Conversation(
        tuple(
            Message(role, text)
            for role, text in zip(("user", "assistant") * 9, texts, strict=False)
        )
    )


def clean_one(worker, item, url=""):
    return worker.clean([SourceRow(item, url)])[0]


def test_a_text_is_normalized_and_measured_in_bytes():
    cleaned = clean_one(CleanWorker((NORMALIZE,)), Document("a", "ﬁne\r\nä"))
    assert msgspec.json.decode(cleaned.line) == {"text": "fine\nä", "name": "a"}
    assert (cleaned.reason, cleaned.num_bytes, cleaned.num_bytes_kept) == (
        cleaning.CHANGED,
        len("ﬁne\r\nä".encode()),
        len("fine\nä".encode()),
    )
    assert clean_one(CleanWorker((NORMALIZE,)), Document("a", "fine")).reason == ""


def test_what_a_rule_removes_is_counted_under_its_name():
    worker = CleanWorker(cleaning.build_rules([{"length": {"least": 5}}]))
    assert clean_one(worker, Document("a", "four"))[:3] == (None, "length", 4)
    assert clean_one(worker, Document("a", "fives")).line


def test_a_url_is_checked_before_the_text():
    hosts = cleaning.build_rules([{"hosts": {"names": ["bad.example"]}}], cleaning.URL_RULES)
    worker = CleanWorker(cleaning.build_rules(["length"]), hosts)
    assert clean_one(worker, Document("a", "text"), "https://bad.example/x").reason == "hosts"
    assert clean_one(worker, Document("a", "text"), "https://good.example/x").line
    assert clean_one(worker, Document("a", "text")).line


def test_chunks_are_lines_of_their_own():
    cleaned = CleanWorker((NORMALIZE,)).clean(
        [SourceRow(Document("a", "one\n")), SourceRow(Document("a", "two", 1))]
    )
    assert [msgspec.json.decode(row.line)["name"] for row in cleaned] == ["a", "a#1"]


def test_every_message_of_a_conversation_goes_through_the_rules():
    worker = CleanWorker((NORMALIZE, *cleaning.build_rules([{"length": {"least": 2}}])))
    cleaned = clean_one(worker, talk("ﬁ?", "yes"))
    assert msgspec.json.decode(cleaned.line, type=Conversation) == talk("fi?", "yes")
    assert (cleaned.reason, cleaned.num_bytes_kept) == (cleaning.CHANGED, 6)
    assert clean_one(worker, talk("yes?", "x")).reason == "length"


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_a_sketch_has_what_its_kind_of_dedup_needs(dedup):
    worker = CleanWorker((NORMALIZE,), (), dedup, DedupConfig(num_perm=64))
    a, b, c = (
        clean_one(worker, Document("a", text)).sketch for text in ("One  two", "one two", "three")
    )
    if dedup == "none":
        assert a is b is c is None
    else:
        assert a.digest == b.digest != c.digest
        assert len(a.signature) == (64 if dedup == "near" else 0)


def test_workers_give_what_this_process_gives():
    worker = CleanWorker((NORMALIZE, *cleaning.build_rules(["length", "symbols"])), (), "near")
    rows = [
        SourceRow(Document(f"d{i}", f"Text {i} " * (i % 5)), problems=("p",) * (i % 2))
        for i in range(700)
    ] + [SourceRow(None)]

    def comparable(num_workers):
        items = []
        for row, cleaned in clean_rows(rows, worker, num_workers):
            sketch = cleaned.sketch
            sketch_bytes = sketch and (sketch.digest, sketch.signature.tobytes())
            items.append((row, cleaned._replace(sketch=None), sketch_bytes))
        return items

    in_process = comparable(0)
    assert in_process == comparable(2)
    assert [row for row, *_ in in_process] == rows


def test_filters_come_after_the_rules_and_are_counted_by_name():
    chosen = filters.build(
        ["refusals", {"message_length": {"most": 4}}, {"first_turns": {"most": 2}}]
    )
    worker = CleanWorker((NORMALIZE,), filters=chosen)
    assert clean_one(worker, talk("Hi", "I can\u2019t help with that"))[:2] == (None, "refusals")
    assert clean_one(worker, talk("Hi", "Hello"))[:2] == (None, "assistant_length")
    assert clean_one(worker, talk("Hi", "\ufb01ne")).line
    cleaned = clean_one(worker, talk("a", "b", "c", "d"))
    assert (msgspec.json.decode(cleaned.line, type=Conversation), cleaned.reason) == (
        talk("a", "b"),
        cleaning.CHANGED,
    )
    assert (cleaned.num_bytes, cleaned.num_bytes_kept) == (4, 2)


def test_every_message_of_a_pair_goes_through_the_rules():
    texts = [
        Message(role, text)
        for role, text in (("user", "\ufb01?"), ("assistant", "yes"), ("assistant", "no"))
    ]
    pair = PreferencePair(*((message,) for message in texts))
    cleaned = clean_one(CleanWorker((NORMALIZE,)), pair)
    assert msgspec.json.decode(cleaned.line) == {
        "prompt": [{"role": "user", "content": "fi?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    assert clean_one(CleanWorker(cleaning.build_rules([{"length": {"least": 3}}])), pair)[:2] == (
        None,
        "length",
    )
