"""data/refine.py: what the rules make of texts, pieces and conversations, in this process and in others."""

from functools import partial

import msgspec
import pytest

from slm_fn.data import clean, filters
from slm_fn.data.intake import Row
from slm_fn.data.minhash import DedupConfig
from slm_fn.data.refine import Refine, refined
from slm_fn.data.rules import Rule
from slm_fn.data.sources import Conversation, Document, Message, Preference
from slm_fn.text.normalize import normalize

FORM = Rule("normalize", partial(normalize, alphabet="unicode", lowercase=False))


def talk(*said):
    return Conversation(tuple(Message(role, text) for role, text in zip(("user", "assistant") * 9, said, strict=False)))


def one(refine, item, url=""):
    return refine.apply([Row(item, url)])[0]


def test_a_text_is_normalised_and_measured_in_bytes():
    found = one(Refine((FORM,)), Document("a", "ﬁne\r\nä"))
    assert msgspec.json.decode(found.line) == {"text": "fine\nä", "name": "a"}
    assert (found.why, found.size, found.left) == (clean.CHANGED, len("ﬁne\r\nä".encode()), len("fine\nä".encode()))
    assert one(Refine((FORM,)), Document("a", "fine")).why == ""


def test_what_a_rule_removes_is_counted_under_its_name():
    refine = Refine(clean.build([{"length": {"least": 5}}]))
    assert one(refine, Document("a", "four"))[:3] == (None, "length", 4)
    assert one(refine, Document("a", "fives")).line


def test_an_address_is_judged_before_the_text():
    hosts = clean.build([{"hosts": {"names": ["bad.example"]}}], clean.URL_RULES)
    refine = Refine(clean.build(["length"]), hosts)
    assert one(refine, Document("a", "text"), "https://bad.example/x").why == "hosts"
    assert one(refine, Document("a", "text"), "https://good.example/x").line
    assert one(refine, Document("a", "text")).line


def test_pieces_are_lines_of_their_own():
    found = Refine((FORM,)).apply([Row(Document("a", "one\n")), Row(Document("a", "two", 1))])
    assert [msgspec.json.decode(row.line)["name"] for row in found] == ["a", "a#1"]


def test_every_message_of_a_conversation_goes_through_the_rules():
    refine = Refine((FORM, *clean.build([{"length": {"least": 2}}])))
    found = one(refine, talk("ﬁ?", "yes"))
    assert msgspec.json.decode(found.line, type=Conversation) == talk("fi?", "yes")
    assert (found.why, found.left) == (clean.CHANGED, 6)
    assert one(refine, talk("yes?", "x")).why == "length"


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_a_sketch_tells_as_much_as_is_asked(dedup):
    refine = Refine((FORM,), (), dedup, DedupConfig(num_perm=64))
    a, b, c = (one(refine, Document("a", text)).sketch for text in ("One  two", "one two", "three"))
    if dedup == "none":
        assert a is b is c is None
    else:
        assert a.digest == b.digest != c.digest
        assert len(a.signature) == (64 if dedup == "near" else 0)


def test_workers_give_what_this_process_gives():
    refine = Refine((FORM, *clean.build(["length", "symbols"])), (), "near")
    rows = [Row(Document(f"d{i}", f"Text {i} " * (i % 5)), problems=("p",) * (i % 2)) for i in range(700)] + [Row(None)]
    here, there = (
        [(row, found._replace(sketch=None), found.sketch and (found.sketch.digest, found.sketch.signature.tobytes()))
         for row, found in refined(rows, refine, workers)]
        for workers in (0, 2)
    )  # fmt: skip
    assert here == there
    assert [row for row, *_ in here] == rows


def test_filters_come_behind_the_rules_and_are_counted_by_name():
    chosen = filters.build(["refusals", {"message_length": {"most": 4}}, {"first_turns": {"most": 2}}])
    refine = Refine((FORM,), filters=chosen)
    assert one(refine, talk("Hi", "I can\u2019t help with that"))[:2] == (None, "refusals")
    assert one(refine, talk("Hi", "Hello"))[:2] == (None, "assistant_length")
    assert one(refine, talk("Hi", "\ufb01ne")).line
    found = one(refine, talk("a", "b", "c", "d"))
    assert (msgspec.json.decode(found.line, type=Conversation), found.why) == (talk("a", "b"), clean.CHANGED)
    assert (found.size, found.left) == (4, 2)


def test_every_message_of_a_pair_goes_through_the_rules():
    said = [Message(role, text) for role, text in (("user", "\ufb01?"), ("assistant", "yes"), ("assistant", "no"))]
    pair = Preference(*((message,) for message in said))
    found = one(Refine((FORM,)), pair)
    assert msgspec.json.decode(found.line) == {
        "prompt": [{"role": "user", "content": "fi?"}],
        "chosen": [{"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "assistant", "content": "no"}],
    }
    assert one(Refine(clean.build([{"length": {"least": 3}}])), pair)[:2] == (None, "length")
