"""Sketches: shingles and similarity against plain ones, equal in every process."""

import os
import pydoc_data.topics
import random
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.clean import minhash
from slm_fn.data.clean.minhash import (
    DedupConfig,
    Sketch,
    choose_bands,
    fold_text,
    hash_shingles,
    make_sketch,
)

CONFIG = DedupConfig()
DOCUMENTS = [text for text in pydoc_data.topics.topics.values() if 100 < len(text.split()) < 3000]
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    r"\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
WORD = re.compile(rf"[{UNSPACED}]|(?:[a-z0-9]|[^\x00-\x7f{UNSPACED}])+")


def jaccard_of(a: Sketch, b: Sketch) -> float:
    return float(minhash.estimate_jaccard(a.signature[None], b.signature)[0])


def shingles(text: str) -> list[tuple[str, ...]]:
    """By a regular expression and slices."""
    words = WORD.findall(fold_text(text))
    size = min(5, len(words))
    return [tuple(words[i : i + size]) for i in range(len(words) - size + 1)] if words else []


def jaccard(a: str, b: str) -> float:
    left, right = set(shingles(a)), set(shingles(b))
    return len(left & right) / len(left | right)


def mutate(text: str, rate: float, seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(
        word if draw.random() > rate else f"new{draw.randrange(1000)}" for word in text.split(" ")
    )


@settings(max_examples=500, deadline=None)
@given(text=st.one_of(st.text(max_size=80), st.text("ab \n.-é中ท1A", max_size=80)))
def test_shingles_are_runs_of_words(text: str) -> None:
    want, got = shingles(text), hash_shingles(fold_text(text))
    assert len(got) == len(want)
    assert len(set(got.tolist())) == len(set(want)), (
        "equal shingles, equal hashes; others, other ones"
    )
    assert len(set(zip(want, got.tolist(), strict=True))) == len(set(want)), "one hash each"


def test_a_word_s_hash_is_the_same_in_any_place_and_script() -> None:
    alone = hash_shingles("one two three four five")
    assert hash_shingles("(one) two, three; four... five!").tolist() == alone.tolist()
    assert hash_shingles("é, zero one two three four five").tolist()[-1] == alone[0]
    assert hash_shingles("zero one two three four five").tolist()[-1] == alone[0]
    assert hash_shingles("two one three four five").tolist() != alone.tolist(), "order counts"


def test_the_estimate_is_the_jaccard_similarity() -> None:
    pairs = [
        (text, mutate(text, rate, i))
        for i, text in enumerate(DOCUMENTS)
        for rate in (0.005, 0.02, 0.05, 0.1)
    ]
    true = np.array([jaccard(a, b) for a, b in pairs])
    found = np.array([jaccard_of(make_sketch(a, CONFIG), make_sketch(b, CONFIG)) for a, b in pairs])
    expected = np.sqrt((true * (1 - true)).mean() / 128)
    assert len(pairs) > 150
    assert true.min() < 0.4
    assert true.max() > 0.95
    assert abs((found - true).mean()) < 0.008, "unbiased"
    assert np.sqrt(((found - true) ** 2).mean()) < 1.2 * expected
    strangers = [
        jaccard_of(make_sketch(a, CONFIG), make_sketch(b, CONFIG)) for a, b in pairwise(DOCUMENTS)
    ]
    assert abs(np.mean(strangers)) < 0.01


def test_texts_that_are_folded_alike_have_one_digest() -> None:
    one = make_sketch("Der  Weiße\nRiese ", CONFIG)
    assert one.digest == make_sketch("der WEISSE riese", CONFIG).digest
    assert one.digest != make_sketch("der weisse riese.", CONFIG).digest
    assert len(one.digest) == 16
    assert one.signature.dtype == np.uint8
    assert one.signature.shape == (128,)


def test_without_words_nothing_is_similar() -> None:
    a, b = make_sketch("?! ...", CONFIG), make_sketch("...", CONFIG)
    assert jaccard_of(a, b) < 0.1
    assert make_sketch("...", CONFIG).signature.tolist() == b.signature.tolist()


def test_a_long_text_is_hashed_a_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(DOCUMENTS)
    whole = make_sketch(text, CONFIG)
    monkeypatch.setattr(minhash, "BLOCK_CHARACTERS", 10_000)
    assert len(text) > 20 * minhash.BLOCK_CHARACTERS
    parts = make_sketch(text, CONFIG)
    assert jaccard_of(whole, parts) > 0.95
    monkeypatch.setattr(
        minhash, "BLOCK_CHARACTERS", 25
    )  # five words: blocks may come in any order, and none is lost
    words = [f"{i:04d} " for i in range(100)]
    blocks = ["".join(words[i : i + 5]) for i in range(0, 100, 5)]
    assert (
        make_sketch("".join(blocks), CONFIG).signature.tolist()
        == make_sketch("".join(blocks[::-1]), CONFIG).signature.tolist()
    )
    monkeypatch.setattr(minhash, "BLOCK_CHARACTERS", 10_000)
    monkeypatch.setattr(minhash, "CHUNK_SHINGLES", 7)
    assert make_sketch(text, CONFIG).signature.tolist() == parts.signature.tolist()


SCRIPT = """
from slm_fn.data.clean.minhash import *
for text in ("It was the best of times, it was the worst of times", "日本語 é 😀", "..."):
    sketch = make_sketch(text, DedupConfig(num_perm=16))
    print(sketch.digest.hex() + sketch.signature.tobytes().hex())
"""
PRINTED = """\
c75e3626a65acfbce8a4c18ca55769071190fba958a10b97f96ad192720c4f86
35a293c96c9a6bea48f3c3db21fe4622f901858216b1b5adcaee9d2b670c8f9e
886a2fad908ce17e95931c902a52c5eeafba0fd24a37df67e05e13cc416ac6a1
"""


def test_another_process_and_machine_come_to_the_same() -> None:
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        assert done.stdout == PRINTED, done.stderr


def test_the_seed_and_the_number_of_functions_are_arguments() -> None:
    text = DOCUMENTS[0]
    first, other = (make_sketch(text, DedupConfig(seed=seed)) for seed in (0, 1))
    assert first.digest == other.digest
    assert jaccard_of(first, other) < 0.1
    assert make_sketch(text, DedupConfig(num_perm=64)).signature.shape == (64,)


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("num_perm", [16, 128, 200])
def test_a_pair_at_the_threshold_is_met_by_as_many_rows_as_can_be(
    threshold: float, num_perm: int
) -> None:
    def met(bands: int, rows: int) -> float:
        return 1 - (1 - threshold**rows) ** bands

    bands, rows = choose_bands(threshold, num_perm)
    assert bands * rows <= num_perm
    assert met(bands, rows) >= 0.99 or rows == 1
    assert rows == 8 or met(num_perm // (rows + 1), rows + 1) < 0.99


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": 1.01}, {"num_perm": 7}, {"num_perm": 5000}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(
        ValueError, match=r"^dedup: threshold .* must be in \(0, 1\], num_perm .* in 8 to 4096$"
    ):
        DedupConfig(**wrong)
