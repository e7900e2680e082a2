"""Unigram: Viterbi chooses the likeliest subwords; their probabilities come from EM."""

import itertools
import json

import pytest

from slm_fn.text.training import unigram

CORPUS = [
    "the cat sat on the mat and the rat, that fat cat. " * 3,
    "a cathedral is not a cat, nor a category" * 3,
]


def test_the_segmentation_is_the_likeliest_of_all() -> None:
    made = unigram.train(CORPUS, 300)
    score = dict(json.loads(made.to_json())["model"]["vocab"])
    for word in (" cat", " that", " cathedral", " mats"):
        cuts = itertools.chain.from_iterable(
            itertools.combinations(range(1, len(word)), n) for n in range(len(word))
        )
        segmentations = (
            [word[a:b] for a, b in itertools.pairwise((0, *cut, len(word)))] for cut in cuts
        )
        best = max(
            sum(score.get(subword, -1e9) for subword in segmentation)
            for segmentation in segmentations
        )
        ids = made.encode(word)
        if all(len(made.token_bytes(i)) or i for i in ids) and all(
            made.token_bytes(i).decode() in score for i in ids
        ):
            score_of_ids = sum(score[made.token_bytes(i).decode()] for i in ids)
            assert score_of_ids == pytest.approx(best, abs=1e-4)


def test_subwords_are_a_distribution_and_parts_of_words_too() -> None:
    made = unigram.train(CORPUS, 300)
    entries = json.loads(made.to_json())["model"]["vocab"]
    learned = [
        (subword, score) for subword, score in entries if score > unigram.UNREACHABLE_LOGPROB / 2
    ]
    assert all(score < 0 for _, score in learned)
    assert [score for _, score in learned] == sorted((score for _, score in learned), reverse=True)
    assert any(
        subword not in " ".join(CORPUS).split() and len(subword) > 1 for subword, _ in learned
    )
    assert made.vocab_size <= 300


def test_unknown_characters_are_bytes() -> None:
    made = unigram.train(CORPUS, 290)
    assert [made.token_bytes(i) for i in made.encode("é")] == [b"\xc3", b"\xa9"]
    assert 6 + 0x41 not in made.encode("<0x41>")


def test_bad_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="too small"):
        unigram.train(CORPUS, 200)
    with pytest.raises(ValueError, match="the corpus is empty"):
        unigram.train([], 300)


def test_a_segmentation_made_of_unknown_characters_is_no_byte_either() -> None:
    made = unigram.train(
        ["abab abab ab"] * 9, 290, pattern=r"\S+|\s+"
    )  # which does not cut the segmentation apart
    assert made.decode(made.encode("<0x41>")) == "<0x41>"
    assert made.special_id("<|end|>") not in made.encode("<|end|>")
