"""One config for four kinds."""

import pytest

from slm_fn.text.training.train import TokenizerConfig, train

CORPUS = ["to be or not to be, that is the question\n" * 9, "whether 'tis nobler"]


@pytest.mark.parametrize("kind", ["bpe", "byte-fallback", "unigram", "char"])
def test_every_kind_is_made(kind: str) -> None:
    made = train(TokenizerConfig(kind=kind, vocab_size=300, specials=("<|tool|>",)), CORPUS)
    assert made.kind == kind
    assert made.vocab_size <= 300
    assert made.decode(made.encode(CORPUS[0])) == CORPUS[0]
    assert {"<|end|>", "<|tool|>"} <= set(made.special_tokens)


def test_settings_arrive() -> None:
    assert train(TokenizerConfig(kind="char", alphabet="ascii"), []).vocab_size == 105
    split = train(TokenizerConfig(vocab_size=300, pattern="gpt2"), CORPUS)
    assert split.pattern.startswith("'(?:")
    few = train(TokenizerConfig(kind="byte-fallback", vocab_size=300, coverage=0.5), CORPUS)
    assert len(few.encode("question")) > len("question") - 4
    assert train(TokenizerConfig(vocab_size=900, min_frequency=5), CORPUS).vocab_size < 400


@pytest.mark.parametrize("pattern", ["qwen2", r"\S+|\s+"])
@pytest.mark.parametrize("kind", ["bpe", "byte-fallback", "unigram"])
def test_no_learned_token_is_a_special_token(kind: str, pattern: str) -> None:
    """The corpus is full of names of special tokens, and this split keeps each in one chunk."""
    corpus = ["<|end|> the <|end|>x the " * 50]
    made = train(
        TokenizerConfig(kind=kind, vocab_size=300, pattern=pattern, specials=("the", "<|end|>x")),
        corpus,
    )
    for text in ("<|end|>", "a <|end|>x", "the", "other the"):
        for ids in (made.encode(text), made.encode_flat([text]).ids.tolist()):
            assert not set(ids) & set(made.special_tokens.values())
            assert made.decode(ids) == text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bpe", "a"),
        ("byte-fallback", "a"),
        ("byte-fallback", "<0x41>"),
        ("unigram", "<0x41>"),
        ("char", "a"),
    ],
)
def test_a_special_token_that_text_would_become_is_rejected(kind: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"plain text would become the special token '{name}'"):
        train(TokenizerConfig(kind=kind, vocab_size=300, specials=(name,)), ["a b a b <0x41>"])
