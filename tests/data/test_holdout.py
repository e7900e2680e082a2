"""data/holdout.py: the text decides, its first part for all, blocks each for itself; blocks joined are the text."""

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.data import holdout
from slm_fn.data.holdout import BLOCK, HeldOut, Last
from slm_fn.data.sources import Document
from slm_fn.text import bpe

TEXTS = [f"text {i}" for i in range(2000)]


def test_the_share_held_out_is_what_was_asked():
    for fraction in (0.0, 0.1, 0.5, 1.0):
        share = sum(holdout.held_out(text, fraction) for text in TEXTS) / len(TEXTS)
        assert abs(share - fraction) < 0.03


def test_a_larger_share_keeps_what_a_smaller_one_holds_out():
    assert all(holdout.held_out(text, 0.3) for text in TEXTS if holdout.held_out(text, 0.1))


def test_adding_documents_moves_none_and_names_do_not_matter():
    few = [Document(f"a{i}", text) for i, text in enumerate(TEXTS[::3])]
    many = [Document(f"b{i}", text) for i, text in enumerate(reversed(TEXTS))]
    where = [
        {d.text: bool(v) for d, v in zip(found, holdout.plan(HeldOut(0.2), Last(), found).is_val, strict=True)}
        for found in (few, many)
    ]
    assert where[0].items() <= where[1].items()


def test_the_first_part_decides_for_a_document():
    parts = [Document("d", text, i) for i, text in enumerate(TEXTS[:50])]
    plan = holdout.plan(HeldOut(0.5), Last(), parts)
    assert len(set(plan.is_val.tolist())) == 1
    assert plan.starts.tolist() == [True] + [False] * 49
    assert plan.last == Last("d", 49, plan.is_val[0])


def test_blocks_decide_for_themselves_and_a_start_token_marks_every_seam():
    parts = [Document("d", text, i) for i, text in enumerate(TEXTS[:200])]
    plan = holdout.plan(HeldOut(0.3, by="block"), Last(), parts)
    assert plan.is_val.tolist() == [holdout.held_out(text, 0.3) for text in TEXTS[:200]]
    seams = [True, *(a != b for a, b in zip(plan.is_val[:-1], plan.is_val[1:], strict=True))]
    assert plan.starts.tolist() == seams


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12), st.integers(0, 12))
def test_a_plan_may_be_made_in_two_halves(pieces, cut):
    documents = [Document(name, f"{i % 3}", part) for i, (name, part) in enumerate(pieces)]
    for rule in (HeldOut(0.5), HeldOut(0.5, by="block"), HeldOut(names=frozenset("a"))):
        whole = holdout.plan(rule, Last(), documents)
        first = holdout.plan(rule, Last(), documents[:cut])
        second = holdout.plan(rule, first.last, documents[cut:])
        assert [*first.starts, *second.starts] == whole.starts.tolist()
        assert [*first.is_val, *second.is_val] == whole.is_val.tolist()
        assert second.last == whole.last


def test_a_part_whose_predecessor_is_missing_begins_anew():
    plan = holdout.plan(HeldOut(), Last(), [Document("a", "x"), Document("a", "z", 2), Document("b", "y", 1)])
    assert plan.starts.all()


@given(st.lists(st.text(alphabet="ab \n1.", max_size=300), min_size=1, max_size=4))
def test_blocks_joined_are_the_documents(texts):
    long = [text * (BLOCK // 50) for text in texts]
    found = list(holdout.blocks([Document("d", text, i) for i, text in enumerate(long)]))
    assert "".join(block.text for block in found) == "".join(long)
    assert [block.part for block in found] == list(range(len(found)))
    assert all(0 < len(block.text) <= BLOCK for block in found)


def test_blocks_of_prose_have_the_tokens_of_the_whole():
    text = "".join(f"Line {i} of a longer story, which\ngoes on and on.\n\n" for i in range(4000))
    tokenizer = bpe.train([text], 400)
    found = list(holdout.blocks([Document("d", text)]))
    assert len(found) > 10
    assert [i for block in found for i in tokenizer.encode(block.text)] == tokenizer.encode(text)


def test_text_added_at_the_end_moves_no_block_before():
    text = "".join(f"Line {i} of a longer story.\n" for i in range(5000))
    before = [block.text for block in holdout.blocks([Document("d", text)])]
    after = [block.text for block in holdout.blocks([Document("d", text + "And they lived on.\n" * 2000)])]
    assert after[: len(before) - 1] == before[:-1]
