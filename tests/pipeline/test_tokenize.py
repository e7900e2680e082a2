"""pipeline/tokenize.py: files to a tokenizer, whatever the order they are named in."""

from slm_fn.config import TokenizerConfig
from slm_fn.pipeline.tokenize import train_from_files


def test_the_order_of_files_does_not_matter(road, tmp_path):
    files = sorted(road.text.iterdir())
    one, two = (
        train_from_files(TokenizerConfig(vocab_size=300), order, tmp_path / "t.json") for order in (files, files[::-1])
    )
    assert one.fingerprint == two.fingerprint
    assert one.vocab_size == 300
