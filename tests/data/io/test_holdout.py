"""The text decides: the first chunk for all, or each block for itself; no text is lost."""

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.data.io import holdout
from slm_fn.data.io.documents import Document
from slm_fn.data.io.holdout import BLOCK_CHARS, HoldoutRule, PreviousChunk
from slm_fn.text.training import bpe

TEXTS = [f"text {i}" for i in range(2000)]


def test_the_share_held_out_is_the_fraction():
    for fraction in (0.0, 0.1, 0.5, 1.0):
        share = sum(holdout.is_held_out(text, fraction) for text in TEXTS) / len(TEXTS)
        assert abs(share - fraction) < 0.03


def test_a_larger_share_keeps_what_a_smaller_one_holds_out():
    assert all(holdout.is_held_out(text, 0.3) for text in TEXTS if holdout.is_held_out(text, 0.1))


def test_adding_documents_moves_none_and_names_do_not_matter():
    few = [Document(f"a{i}", text) for i, text in enumerate(TEXTS[::3])]
    many = [Document(f"b{i}", text) for i, text in enumerate(reversed(TEXTS))]

    def split_of_texts(documents):
        plan = holdout.plan_splits(HoldoutRule(0.2), PreviousChunk(), documents)
        texts = [document.text for document in documents]
        return dict(zip(texts, plan.is_val.tolist(), strict=True))

    assert split_of_texts(few).items() <= split_of_texts(many).items()


def test_the_first_chunk_decides_for_a_document():
    chunks = [Document("d", text, i) for i, text in enumerate(TEXTS[:50])]
    plan = holdout.plan_splits(HoldoutRule(0.5), PreviousChunk(), chunks)
    assert len(set(plan.is_val.tolist())) == 1
    assert plan.starts.tolist() == [True] + [False] * 49
    assert plan.previous == PreviousChunk("d", 49, plan.is_val[0])


def test_blocks_decide_for_themselves_and_a_start_token_marks_every_boundary():
    chunks = [Document("d", text, i) for i, text in enumerate(TEXTS[:200])]
    plan = holdout.plan_splits(HoldoutRule(0.3, split_by="block"), PreviousChunk(), chunks)
    assert plan.is_val.tolist() == [holdout.is_held_out(text, 0.3) for text in TEXTS[:200]]
    boundaries = [True, *(a != b for a, b in zip(plan.is_val[:-1], plan.is_val[1:], strict=True))]
    assert plan.starts.tolist() == boundaries


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3)), max_size=12), st.integers(0, 12)
)
def test_a_plan_may_be_made_in_two_halves(chunks, cut):
    documents = [Document(name, f"{i % 3}", part) for i, (name, part) in enumerate(chunks)]
    for rule in (
        HoldoutRule(0.5),
        HoldoutRule(0.5, split_by="block"),
        HoldoutRule(names=frozenset("a")),
    ):
        full = holdout.plan_splits(rule, PreviousChunk(), documents)
        first = holdout.plan_splits(rule, PreviousChunk(), documents[:cut])
        second = holdout.plan_splits(rule, first.previous, documents[cut:])
        assert [*first.starts, *second.starts] == full.starts.tolist()
        assert [*first.is_val, *second.is_val] == full.is_val.tolist()
        assert second.previous == full.previous


def test_a_chunk_whose_predecessor_is_missing_gets_a_start_token():
    plan = holdout.plan_splits(
        HoldoutRule(),
        PreviousChunk(),
        [Document("a", "x"), Document("a", "z", 2), Document("b", "y", 1)],
    )
    assert plan.starts.all()


@given(st.lists(st.text(alphabet="ab \n1.", max_size=300), min_size=1, max_size=4))
def test_blocks_joined_are_the_documents(texts):
    long = [text * (BLOCK_CHARS // 50) for text in texts]
    blocks = list(holdout.split_blocks([Document("d", text, i) for i, text in enumerate(long)]))
    assert "".join(block.text for block in blocks) == "".join(long)
    assert [block.chunk_index for block in blocks] == list(range(len(blocks)))
    assert all(0 < len(block.text) <= BLOCK_CHARS for block in blocks)


def test_blocks_of_prose_have_the_tokens_of_the_full_text():
    text = "".join(f"Line {i} of a longer story, which\ngoes on and on.\n\n" for i in range(4000))
    tokenizer = bpe.train([text], 400)
    blocks = list(holdout.split_blocks([Document("d", text)]))
    assert len(blocks) > 10
    assert [i for block in blocks for i in tokenizer.encode(block.text)] == tokenizer.encode(text)


def test_text_added_at_the_end_moves_no_block_before():
    text = "".join(f"Line {i} of a longer story.\n" for i in range(5000))
    before = [block.text for block in holdout.split_blocks([Document("d", text)])]
    after = [
        block.text
        for block in holdout.split_blocks([Document("d", text + "And they lived on.\n" * 2000)])
    ]
    assert after[: len(before) - 1] == before[:-1]
