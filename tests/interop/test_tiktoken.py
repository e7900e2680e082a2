"""interop/tiktoken.py: the same ids, merge by merge and chunk by chunk, or a reason why not."""

import json
import tempfile
from pathlib import Path

import pytest
import tiktoken as library
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slm_fn.interop import tiktoken
from slm_fn.text.patterns import SPLIT_PATTERNS
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe

thousands = settings(max_examples=1500, deadline=None)
hundreds = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LETTERS = st.text(alphabet="ab", max_size=40) | st.text(alphabet="abc '", max_size=30)


def altered(tokenizer, change):
    """The tokenizer with its JSON changed in place."""
    fields = json.loads(tokenizer.to_json())
    change(fields)
    return Tokenizer.from_json(json.dumps(fields))


def exported(tokenizer):
    """The tokenizer written for tiktoken and read back as a `tiktoken.Encoding`."""
    contents = tiktoken.export_files(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in contents.items():
            Path(folder, name).write_text(text, encoding="utf-8", newline="")
        return tiktoken.load_encoding(folder, tokenizer)


@pytest.fixture(scope="module")
def encoding(tokenizer):
    return exported(tokenizer)


@thousands
@given(text=st.text(max_size=60))
def test_any_text_has_the_same_ids(tokenizer, encoding, text):
    assert encoding.encode_ordinary(text) == tokenizer.encode(text)
    assert encoding.decode(encoding.encode_ordinary(text)) == text


@thousands
@given(
    text=st.text(
        alphabet="the TO'sSſİ \t\r\n\u00a0\u2028\u3000123½ééé日本😀\u200d<|end|>.,_", max_size=60
    )
)
def test_text_made_of_what_splits_has_the_same_ids(tokenizer, encoding, text):
    assert encoding.encode_ordinary(text) == tokenizer.encode(text)


@hundreds
@given(
    corpus=st.lists(LETTERS.filter(str.strip), min_size=1, max_size=6),
    texts=st.lists(LETTERS, max_size=10),
)
def test_what_is_trained_on_few_letters_is_never_refused(corpus, texts):
    tokenizer = bpe.train(corpus, 282, min_frequency=1, method="heap")
    made = exported(tokenizer)
    for text in [*corpus, *texts, "a" * 50, "ab" * 30, "aab" * 20]:
        assert made.encode_ordinary(text) == tokenizer.encode(text)


@st.composite
def merge_lists(draw):
    """Any merges over two letters, most of which no training would make."""
    tokens, merges = [b"a", b"b"], []
    for _ in range(draw(st.integers(1, 10))):
        left, right = draw(st.sampled_from(tokens)), draw(st.sampled_from(tokens))
        if len(left + right) <= 12:
            merges.append((left, right))
            tokens.append(left + right)
    return list(dict.fromkeys(merges))


def test_any_merges_are_exact_or_refused():
    counts = {"exact": 0, "refused": 0, "refused and differs": 0}

    @hundreds
    @given(
        merges=merge_lists(),
        texts=st.lists(st.text(alphabet="ab", max_size=24), min_size=10, max_size=30),
    )
    def run(merges, texts):
        tokenizer = bpe.build_tokenizer(merges, SPLIT_PATTERNS["qwen2"])
        try:
            made = exported(tokenizer)
        except ValueError:
            ranks = {tokenizer.token_bytes(i): i for i in range(6, tokenizer.vocab_size)}
            raw = library.Encoding(
                "raw", pat_str=SPLIT_PATTERNS["qwen2"], mergeable_ranks=ranks, special_tokens={}
            )
            probes = [
                *texts,
                *(left + right + rest for left, right in merges for rest in (b"", left, right)),
            ]
            probes = [text if isinstance(text, str) else text.decode() for text in probes]
            counts["refused"] += 1
            counts["refused and differs"] += any(
                raw.encode_ordinary(t) != tokenizer.encode(t) for t in probes
            )
            return
        counts["exact"] += 1
        for text in [*texts, *("a" * n for n in range(20)), *("ab" * n for n in range(12))]:
            assert made.encode_ordinary(text) == tokenizer.encode(text)

    run()
    assert min(counts.values()) >= 10, counts
    assert counts["refused and differs"] >= 0.5 * counts["refused"], f"refuses too much: {counts}"


@pytest.mark.parametrize("name", SPLIT_PATTERNS)
def test_every_named_split_is_taken(name):
    tokenizer = bpe.train(["it's 1234 o'clock, WE'LL  see\n\n" * 9], 300, pattern=name)
    assert tiktoken.split_pattern(tokenizer) == SPLIT_PATTERNS[name]
    text = "it'S 98765 \n\n  WE'LL\tsee ١٢٣½"
    assert exported(tokenizer).encode_ordinary(text) == tokenizer.encode(text)


def test_gpt2_s_own_step_is_its_pattern(tokenizer):
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    theirs = altered(tokenizer, lambda fields: fields.update(pre_tokenizer=step))
    assert tiktoken.split_pattern(theirs) == SPLIT_PATTERNS["gpt2"]
    text = "it's 123 \n\n  tO be"
    assert exported(theirs).encode_ordinary(text) == theirs.encode(text)


def test_control_tokens_keep_their_ids_and_stay_out_of_text(tokenizer, encoding):
    text = "to be<|end|>"
    assert encoding.encode(text, allowed_special="all") == [
        *tokenizer.encode("to be"),
        tokenizer.special_id("<|end|>"),
    ]
    assert encoding.encode(text, disallowed_special=()) == tokenizer.encode(text)
    assert encoding.n_vocab == tokenizer.vocab_size
    assert not set(tokenizer.special_tokens.values()) & set(
        tiktoken.export_mergeable_ranks(tokenizer).values()
    )


def test_a_written_export_is_read_by_tiktoken_itself(tokenizer, tmp_path):
    from tiktoken.load import load_tiktoken_bpe

    for name, text in tiktoken.export_files(tokenizer, "mine").items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    counts = json.loads((tmp_path / tiktoken.ENCODING_FILE).read_text())
    theirs = library.Encoding(
        **counts, mergeable_ranks=load_tiktoken_bpe(str(tmp_path / tiktoken.RANKS_FILE))
    )
    ours = tiktoken.load_encoding(tmp_path, tokenizer)
    text = "日本 to be 'tis <|end|>"
    assert theirs.encode_ordinary(text) == ours.encode_ordinary(text) == tokenizer.encode(text)
    assert theirs.name == "mine"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("tokenizer.tiktoken", "!!!! 3\n", "no tiktoken export"),
        ("tokenizer.tiktoken", "YQ== x\n", "no tiktoken export"),
        ("tokenizer.tiktoken", "YQ==\n", "no tiktoken export"),
        ("encoding.json", "{", "no tiktoken export"),
        ("encoding.json", '{"name": "x"}', "no tiktoken export"),
        ("encoding.json", "[]", "no tiktoken export"),
        ("encoding.json", None, "missing; an export holds tokenizer.tiktoken and encoding.json"),
    ],
)
def test_a_damaged_export_is_said(tokenizer, tmp_path, name, content, words):
    for file, text in tiktoken.export_files(tokenizer).items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        tiktoken.load_encoding(tmp_path)


def test_an_export_of_another_tokenizer_is_noticed(tokenizer, tmp_path):
    for name, text in tiktoken.export_files(tokenizer).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    other = bpe.train(["something else, something other"] * 3, 300)
    with pytest.raises(ValueError, match="its ids differ on a text"):
        tiktoken.load_encoding(tmp_path, other)


def test_other_kinds_are_refused(kinds):
    for kind in ("byte-fallback", "unigram", "char"):
        with pytest.raises(ValueError, match=f"its kind is {kind}"):
            tiktoken.export_mergeable_ranks(kinds[kind])


SPLIT = {"type": "Split", "pattern": {"Regex": r"\d"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: f.update(normalizer={"type": "NFC"}), "changes text before encoding"),
        (lambda f: f["model"].update(dropout=0.1), "dropout 0.1"),
        (lambda f: f["added_tokens"][5].update(special=False), "in plain text"),
        (lambda f: f["model"]["merges"].reverse(), "is merged later than tokens with larger ids"),
        (lambda f: f["model"]["merges"].pop(0), "never make token"),
        (
            lambda f: f["pre_tokenizer"]["pretokenizers"].insert(0, SPLIT),
            "not split by one regular expression",
        ),
        (
            lambda f: f["pre_tokenizer"]["pretokenizers"][0].update(behavior="Removed"),
            "keeps all of it",
        ),
        (
            lambda f: f["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+"),
            "read the pattern",
        ),
        (
            lambda f: f["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(
                Regex=r"\R|\p{In_Thai}"
            ),
            "not take",
        ),
        (
            lambda f: f["pre_tokenizer"]["pretokenizers"][1].update(add_prefix_space=True),
            "keeps all of it",
        ),
    ],
)
def test_what_tiktoken_cannot_do_is_refused_with_its_reason(tokenizer, change, words):
    with pytest.raises(ValueError, match=f"no exact form in tiktoken: .*{words}"):
        exported(altered(tokenizer, change))


def test_a_vocabulary_without_all_bytes_is_refused(tokenizer):
    def drop(fields):
        del fields["model"]["vocab"]["\u0100"]  # the byte 0x00

    with pytest.raises(ValueError, match="lacks 1 of the 256 bytes, 0x00 first"):
        tiktoken.export_mergeable_ranks(altered(tokenizer, drop))
