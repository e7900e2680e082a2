"""Laws of every kind of tokenizer, over all of Unicode and raw bytes. A new one joins the registry in one line."""

import pickle

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from slm_fn.text import bpe, char, fallback, patterns, unigram
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.utf8 import Utf8, flush, push

CORPUS = [
    "To be, or not to be: that is the question.\r\nWhether 'tis nobler in the mind to suffer  \n" * 20,
    "It's 12345 o'clock, WE'LL see <b>x</b> a_b = [1, 2];\n\n\n    return None <0x41> <|end|>\t\t\n" * 20,
    "日本語のテキスト 😀👩‍👩‍👧 naïve café É ﬁ हिन्दी ١٢٣ ▁▁ \u00a0\u3000 x = y\n" * 20,
]
TOKENIZERS = {
    "bpe": bpe.train(CORPUS, 420),
    "bpe heap": bpe.train(CORPUS, 420, method="heap"),
    "bpe gpt2": bpe.train(CORPUS, 420, pattern="gpt2"),
    "bpe llama3": bpe.train(CORPUS, 420, pattern="llama3"),
    "bpe own split": bpe.train(CORPUS, 420, pattern=r"\w+|[^\w\s]+|\s+"),
    "byte-fallback": fallback.train(CORPUS, 420),
    "byte-fallback, few characters": fallback.train(CORPUS, 420, coverage=0.9),
    "unigram": unigram.train(CORPUS, 420),
    "char": char.train(CORPUS),
    "char ascii": char.train(policy="ascii"),
}
LOSSLESS = {name: made for name, made in TOKENIZERS.items() if made.kind != "char"}
SPELT = [*bpe.SPECIALS, "<|", "|>", "<|end|", "<|end|><|end|>", "<0x41>", "<PAD>", "<UNK>", "▁", "\x00", "\ufffd"]
texts = st.lists(st.one_of(st.text(max_size=20), st.sampled_from([*SPELT, *CORPUS])), max_size=5).map("".join)
raw = st.lists(st.one_of(st.binary(max_size=8), st.text(max_size=4).map(str.encode)), max_size=6).map(b"".join)
many = settings(deadline=None)  # how many: the profile in conftest.py
THEIRS = {name: tokenizers.Tokenizer.from_str(made.to_json()) for name, made in TOKENIZERS.items()}
for theirs in THEIRS.values():
    theirs.encode_special_tokens = True
AGAIN = {name: Tokenizer.from_json(made.to_json()) for name, made in TOKENIZERS.items()}
PICKLED = {name: pickle.loads(pickle.dumps(made)) for name, made in TOKENIZERS.items()}
each = pytest.mark.parametrize("name", TOKENIZERS)
each_lossless = pytest.mark.parametrize("name", LOSSLESS)


@each_lossless
@many
@given(text=texts)
def test_decoding_gives_the_text_back(name: str, text: str) -> None:
    made = TOKENIZERS[name]
    assert made.decode(made.encode(text)) == text


@each_lossless
@many
@given(data=raw)
@example(data=bytes(range(256)))
def test_decoding_gives_any_bytes_back(name: str, data: bytes) -> None:
    made = TOKENIZERS[name]
    assert made.decode_bytes(made.encode_bytes(data)) == data


@pytest.mark.parametrize("name", ["bpe", "bpe gpt2", "bpe llama3", "byte-fallback"])
def test_every_code_point_comes_back(name: str) -> None:
    made = TOKENIZERS[name]
    points = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    parts = [points[begin : begin + 256] for begin in range(0, len(points), 256)]
    flat = made.encode_flat(parts)
    assert made.decode(flat.ids.tolist()) == points


@each
@many
@given(text=texts)
def test_the_saved_file_gives_the_same_ids_in_the_library_and_after_pickling(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode(text)
    assert THEIRS[name].encode(text, add_special_tokens=False).ids == ids
    assert AGAIN[name].encode(text) == ids
    assert PICKLED[name].encode(text) == ids


@each
@many
@given(parts=st.lists(texts, max_size=4))
def test_the_engine_for_whole_files_gives_the_same_ids(name: str, parts: list[str]) -> None:
    made = TOKENIZERS[name]
    flat = made.encode_flat(parts)
    rows = [flat.ids[a:b].tolist() for a, b in zip(flat.offsets, flat.offsets[1:], strict=False)]
    assert rows == made.encode_batch(parts)


@each
@many
@given(text=texts, cut=st.integers(0, 60))
def test_any_prefix_of_a_stream_is_whole_characters_and_the_end_is_the_whole_text(
    name: str, text: str, cut: int
) -> None:
    made = TOKENIZERS[name]
    ids = made.encode(text)
    state, out = Utf8(), ""
    for place, token in enumerate(ids):
        state, piece = push(state, made.token_bytes(token))
        out += piece
        if place == cut and made in LOSSLESS.values():
            assert text.startswith(out)  # nothing broken was shown: no U+FFFD that the text does not hold itself
    assert out + flush(state) == made.decode(ids)


@each
@many
@given(text=texts)
def test_text_never_becomes_a_control_token_by_itself(name: str, text: str) -> None:
    made = TOKENIZERS[name]
    controls = set(made.specials.values()) - {made.specials.get("<UNK>")}
    assert not set(made.encode(text)) & controls
    assert made.encode(text, allowed_special="none") == made.encode(text, allowed_special=()) == made.encode(text)


@each
@many
@given(parts=st.lists(st.one_of(st.text(alphabet="ab <|end>", max_size=6), st.sampled_from(bpe.SPECIALS)), max_size=6))
def test_allowed_control_tokens_are_found_and_only_those(name: str, parts: list[str]) -> None:
    made = TOKENIZERS[name]
    text = "".join(parts)
    known = [part for part in bpe.SPECIALS if part in made.specials]
    for allowed in ("all", {"<|end|>", "<|user|>"}, {"<|end|>"}):
        names = set(known if allowed == "all" else allowed)
        ids = made.encode(text, allowed_special=allowed)
        found = [i for i in ids if i in {made.special(n) for n in known}]
        shown = {made.special(n): n for n in known}
        # Left to right, nothing overlaps: the control tokens found are those a plain search finds.
        expected, place = [], 0
        while place < len(text):
            hit = next((n for n in sorted(names, key=len, reverse=True) if text.startswith(n, place)), None)
            expected += [hit] if hit else []
            place += len(hit) if hit else 1
        assert [shown[i] for i in found] == expected
    if any(n in text for n in known):
        with pytest.raises(ValueError, match="spells the control token"):
            made.encode(text, allowed_special="raise")
    else:
        assert made.encode(text, allowed_special="raise") == made.encode(text)


@each
def test_an_unknown_name_is_not_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="no control token <nope>"):
        TOKENIZERS[name].encode("a<nope>", allowed_special={"<nope>"})


@each
def test_every_token_has_bytes_of_its_own(name: str) -> None:
    made = TOKENIZERS[name]
    own = [made.token_bytes(i) for i in range(made.vocab_size) if i not in made.specials.values()]
    spelt = [piece for piece in own if len(piece) > 1]
    assert all(own)
    assert len(set(spelt)) == len(spelt)


@pytest.mark.parametrize("name", [name for name in TOKENIZERS if name.startswith(("bpe", "byte"))])
def test_merges_and_pattern_are_read_back(name: str) -> None:
    made = TOKENIZERS[name]
    assert len(made.merges) == made.vocab_size - made.special("<|end|>") - 1 - len(_alphabet(made))
    assert made.pattern == (patterns.resolve(name.split()[1]) if name in ("bpe gpt2", "bpe llama3") else made.pattern)
    assert patterns.resolve(made.pattern or "") == made.pattern


def _alphabet(made: Tokenizer) -> set[bytes]:
    """Bytes, and for byte-fallback the characters too."""
    merged = {left + right for left, right in made.merges}
    first = made.special("<|end|>") + 1
    return {made.token_bytes(i) for i in range(first, first + 256)} | {
        f"{i} {made.token_bytes(i)!r}".encode()
        for i in range(first + 256, made.vocab_size)
        if made.token_bytes(i) not in merged
    }
