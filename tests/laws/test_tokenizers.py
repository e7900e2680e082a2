"""Laws of every kind of tokenizer, over all of Unicode and raw bytes.

A new kind is added to `TOKENIZERS` in one line.
"""

import pickle

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm_fn.text import patterns
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, byte_fallback, char, unigram, vocabulary
from slm_fn.text.training.byte_fallback import ByteFallbackOptions
from slm_fn.text.utf8 import Utf8State, flush, push

CORPUS = [
    "To be, or not to be: that is the question.\r\nWhether 'tis nobler in the mind to suffer  \n"
    * 20,
    "It's 12345 o'clock, WE'LL see <b>x</b> a_b = [1, 2];\n\n\n    return None <0x41> <|end|>\t\t\n"
    * 20,
    "日本語のテキスト 😀👩‍👩‍👧 naïve café É ﬁ हिन्दी ١٢٣ ▁▁ \u00a0\u3000 x = y\n" * 20,
]
TOKENIZERS = {
    "bpe": bpe.train(CORPUS, 420),
    "bpe heap": bpe.train(CORPUS, 420, method="heap"),
    "bpe gpt2": bpe.train(CORPUS, 420, pattern="gpt2"),
    "bpe llama3": bpe.train(CORPUS, 420, pattern="llama3"),
    "bpe own split": bpe.train(CORPUS, 420, pattern=r"\w+|[^\w\s]+|\s+"),
    "byte-fallback": byte_fallback.train(CORPUS, 420),
    "byte-fallback, few characters": byte_fallback.train(
        CORPUS, 420, options=ByteFallbackOptions(coverage=0.9)
    ),
    "unigram": unigram.train(CORPUS, 420),
    "char": char.train(CORPUS),
    "char ascii": char.train(source="ascii"),
}
LOSSLESS = {name: made for name, made in TOKENIZERS.items() if made.kind != "char"}
SPECIAL_TEXTS = [
    *vocabulary.SPECIAL_TOKENS,
    "<|",
    "|>",
    "<|end|",
    "<|end|><|end|>",
    "<0x41>",
    "<PAD>",
    "<UNK>",
    "▁",
    "\x00",
    "\ufffd",
]
texts = st.lists(
    st.one_of(st.text(max_size=20), st.sampled_from([*SPECIAL_TEXTS, *CORPUS])), max_size=5
).map("".join)
raw = st.lists(
    st.one_of(st.binary(max_size=8), st.text(max_size=4).map(str.encode)), max_size=6
).map(b"".join)
many = settings(deadline=None)  # how many: the profile in conftest.py
HF_TOKENIZERS = {
    name: tokenizers.Tokenizer.from_str(made.to_json()) for name, made in TOKENIZERS.items()
}
for hf in HF_TOKENIZERS.values():
    hf.encode_special_tokens = True
RELOADED = {name: Tokenizer.from_json(made.to_json()) for name, made in TOKENIZERS.items()}
PICKLED = {name: pickle.loads(pickle.dumps(made)) for name, made in TOKENIZERS.items()}
each = pytest.mark.parametrize("name", TOKENIZERS)
each_lossless = pytest.mark.parametrize("name", LOSSLESS)


@each_lossless
@many
@given(text=texts)
def test_decoding_returns_the_text(name: str, text: str) -> None:
    made = TOKENIZERS[name]
    assert made.decode(made.encode(text)) == text


@each_lossless
@many
@given(data=raw)
@example(data=bytes(range(256)))
def test_decoding_returns_any_bytes(name: str, data: bytes) -> None:
    made = TOKENIZERS[name]
    assert made.decode_bytes(made.encode_bytes(data)) == data


@pytest.mark.parametrize("name", ["bpe", "bpe gpt2", "bpe llama3", "byte-fallback"])
def test_every_code_point_is_decoded(name: str) -> None:
    made = TOKENIZERS[name]
    points = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    parts = [points[begin : begin + 256] for begin in range(0, len(points), 256)]
    flat = made.encode_flat(parts)
    assert made.decode(flat.ids.tolist()) == points


@each
@many
@given(text=texts)
def test_the_saved_file_gives_the_same_ids_in_the_library_and_after_pickling(
    name: str, text: str
) -> None:
    ids = TOKENIZERS[name].encode(text)
    assert HF_TOKENIZERS[name].encode(text, add_special_tokens=False).ids == ids
    assert RELOADED[name].encode(text) == ids
    assert PICKLED[name].encode(text) == ids


@each
@many
@given(parts=st.lists(texts, max_size=4))
def test_the_encoder_backend_gives_the_same_ids(name: str, parts: list[str]) -> None:
    made = TOKENIZERS[name]
    flat = made.encode_flat(parts)
    rows = [flat.ids[a:b].tolist() for a, b in zip(flat.offsets, flat.offsets[1:], strict=False)]
    assert rows == made.encode_batch(parts)


@each
@many
@given(text=texts, cut=st.integers(0, 60))
def test_a_stream_never_splits_a_character_and_ends_as_the_full_text(
    name: str, text: str, cut: int
) -> None:
    made = TOKENIZERS[name]
    ids = made.encode(text)
    state, out = Utf8State(), ""
    for position, token in enumerate(ids):
        state, delta = push(state, made.token_bytes(token))
        out += delta
        if position == cut and made in LOSSLESS.values():
            assert text.startswith(out)  # no U+FFFD that is not in the text
    assert out + flush(state) == made.decode(ids)


@each
@many
@given(text=texts)
def test_text_never_becomes_a_special_token_by_itself(name: str, text: str) -> None:
    made = TOKENIZERS[name]
    controls = set(made.special_tokens.values()) - {made.special_tokens.get("<UNK>")}
    assert not set(made.encode(text)) & controls
    assert (
        made.encode(text, allowed_special="none")
        == made.encode(text, allowed_special=())
        == made.encode(text)
    )


@each
@many
@given(
    parts=st.lists(
        st.one_of(
            st.text(alphabet="ab <|end>", max_size=6), st.sampled_from(vocabulary.SPECIAL_TOKENS)
        ),
        max_size=6,
    )
)
def test_allowed_special_tokens_are_encoded_and_only_those(name: str, parts: list[str]) -> None:
    made = TOKENIZERS[name]
    text = "".join(parts)
    known = [part for part in vocabulary.SPECIAL_TOKENS if part in made.special_tokens]
    for allowed in ("all", {"<|end|>", "<|user|>"}, {"<|end|>"}):
        names = set(known if allowed == "all" else allowed)
        ids = made.encode(text, allowed_special=allowed)
        found = [i for i in ids if i in {made.special_id(n) for n in known}]
        shown = {made.special_id(n): n for n in known}
        # Left to right, nothing overlaps: the special tokens are those that a plain search finds.
        expected, position = [], 0
        while position < len(text):
            hit = next(
                (n for n in sorted(names, key=len, reverse=True) if text.startswith(n, position)),
                None,
            )
            expected += [hit] if hit else []
            position += len(hit) if hit else 1
        assert [shown[i] for i in found] == expected
    if any(n in text for n in known):
        with pytest.raises(ValueError, match="spells the special token"):
            made.encode(text, allowed_special="raise")
    else:
        assert made.encode(text, allowed_special="raise") == made.encode(text)


@each
def test_an_unknown_name_is_not_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="no special token <nope>"):
        TOKENIZERS[name].encode("a<nope>", allowed_special={"<nope>"})


@each
def test_every_token_has_its_own_bytes(name: str) -> None:
    made = TOKENIZERS[name]
    own = [
        made.token_bytes(i) for i in range(made.vocab_size) if i not in made.special_tokens.values()
    ]
    longer = [token for token in own if len(token) > 1]
    assert all(own)
    assert len(set(longer)) == len(longer)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith(("bpe", "byte"))])
def test_merges_and_pattern_are_read_from_the_json(name: str) -> None:
    made = TOKENIZERS[name]
    assert len(made.merges) == made.vocab_size - made.special_id("<|end|>") - 1 - len(
        _alphabet(made)
    )
    assert made.pattern == (
        patterns.resolve(name.split()[1]) if name in ("bpe gpt2", "bpe llama3") else made.pattern
    )
    assert patterns.resolve(made.pattern or "") == made.pattern


def _alphabet(made: Tokenizer) -> set[bytes]:
    """Bytes, and for byte-fallback the characters too."""
    merged = {left + right for left, right in made.merges}
    first = made.special_id("<|end|>") + 1
    return {made.token_bytes(i) for i in range(first, first + 256)} | {
        f"{i} {made.token_bytes(i)!r}".encode()
        for i in range(first + 256, made.vocab_size)
        if made.token_bytes(i) not in merged
    }
