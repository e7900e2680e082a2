"""pipeline/model_folder.py: a folder of another format, or of a newer one, is refused by name."""

import msgspec
import pytest

from slm_fn.core import files
from slm_fn.nn import gpt
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.model_folder import CONFIG, GenerationConfig
from slm_fn.text.training import bpe


@pytest.fixture
def folder(tmp_path):
    tokenizer = bpe.train(["to be or not to be"], 300)
    config = gpt.ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=8, num_layers=1, num_heads=1, num_kv_heads=1, ffn_dim=8
    )
    for name, data in models.metadata_files(config, tokenizer, GenerationConfig()).items():
        files.write(tmp_path / name, data)
    return tmp_path


def test_metadata_comes_back(folder):
    metadata = models.load_metadata(folder)
    assert (metadata.format, metadata.version, metadata.model.dim) == ("slm_fn", 1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "gguf"}, "format is 'gguf', expected 'slm_fn'"),
        ({"version": 2}, "format version 2, this slm_fn reads up to 1; upgrade"),
        ({"version": 0}, "format version 0"),
    ],
)
def test_another_format_or_version_is_refused(folder, changes, message):
    metadata = msgspec.structs.replace(models.load_metadata(folder), **changes)
    files.write(folder / CONFIG, msgspec.json.encode(metadata))
    with pytest.raises(ValueError, match=message):
        models.load_metadata(folder)
    with pytest.raises(ValueError, match=message):
        models.load(folder)
