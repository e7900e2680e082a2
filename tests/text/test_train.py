"""One config for four kinds."""

import pytest

from slm_fn.text.train import TokenizerConfig, train

CORPUS = ["to be or not to be, that is the question\n" * 9, "whether 'tis nobler"]


@pytest.mark.parametrize("kind", ["bpe", "byte-fallback", "unigram", "char"])
def test_every_kind_is_made(kind: str) -> None:
    made = train(TokenizerConfig(kind=kind, vocab_size=300, specials=("<|tool|>",)), CORPUS)
    assert made.kind == kind
    assert made.vocab_size <= 300
    assert made.decode(made.encode(CORPUS[0])) == CORPUS[0]
    assert {"<|end|>", "<|tool|>"} <= set(made.specials)


def test_settings_arrive() -> None:
    assert train(TokenizerConfig(kind="char", alphabet="ascii"), []).vocab_size == 105
    split = train(TokenizerConfig(vocab_size=300, pattern="gpt2"), CORPUS)
    assert split.pattern.startswith("'(?:")
    few = train(TokenizerConfig(kind="byte-fallback", vocab_size=300, coverage=0.5), CORPUS)
    assert len(few.encode("question")) > len("question") - 4
    assert train(TokenizerConfig(vocab_size=900, min_frequency=5), CORPUS).vocab_size < 400
