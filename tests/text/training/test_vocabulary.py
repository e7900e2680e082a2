"""The vocabulary has room for what it must hold, and no merge produces a special token."""

import pytest

from slm_fn.text.training import vocabulary


def test_special_tokens_and_required_tokens_must_fit() -> None:
    assert vocabulary.count_trainable_tokens(262, 256, vocabulary.SPECIAL_TOKENS) == 256
    with pytest.raises(ValueError, match=r"too small: 256 .* 6 special tokens take 262"):
        vocabulary.count_trainable_tokens(261, 256, vocabulary.SPECIAL_TOKENS)


@pytest.mark.parametrize("names", [("<|x|>", "<|x|>"), ("",)])
def test_special_tokens_are_distinct_and_not_empty(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="distinct and not empty"):
        vocabulary.count_trainable_tokens(300, 256, names)


def test_merges_that_use_a_dropped_merge_are_dropped_too() -> None:
    merges = [("t", "h"), ("th", "e"), ("the", "y"), ("a", "b")]
    assert vocabulary.drop_special_merges(merges, ["the"]) == [("t", "h"), ("a", "b")]
