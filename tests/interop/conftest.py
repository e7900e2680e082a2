"""One small tokenizer of every kind."""

import pytest

from slm_fn.text.tokenizer import Tokenizer
from slm_fn.text.training import bpe, byte_fallback, char, unigram

CORPUS = [
    "To be, or not to be: that is the question.\r\nWhether 'tis nobler in the mind to suffer  \n"
    * 20,
    "日本語のテキスト 😀👩‍👩‍👧 naïve café 12345 \t x = y\n" * 20,
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return bpe.train(CORPUS, 400)


@pytest.fixture(scope="session")
def kinds(tokenizer) -> dict[str, Tokenizer]:
    return {
        "bpe": tokenizer,
        "byte-fallback": byte_fallback.train(CORPUS, 400),
        "unigram": unigram.train(CORPUS, 340),
        "char": char.train(CORPUS),
    }
