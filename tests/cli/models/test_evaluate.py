"""`slm eval ppl`: the figures of a uniform model."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from slm_fn.cli.models.evaluate import command
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.model_folder import GenerationConfig
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.train import checkpoint


@pytest.fixture
def uniform(project, tmp_path):
    """A model folder whose every logit is zero."""
    tokenizer = Tokenizer.load(project.tokenizer)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        ffn_dim=16,
        context=32,
    )
    params = gpt.init(config, 0)
    checkpoint.save_tree(
        tmp_path / checkpoint.WEIGHTS, {**params, "embed": torch.zeros_like(params["embed"])}
    )
    for name, data in models.metadata_files(config, tokenizer, GenerationConfig()).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path, tokenizer


def test_a_uniform_model_has_a_loss_of_ln_v_per_token(project, uniform):
    folder, tokenizer = uniform
    args = ["ppl", str(folder), "--data", str(project.text), "--device", "cpu", "--json"]
    figures = json.loads(CliRunner().invoke(command, args, catch_exceptions=False).stdout)
    assert figures["loss_nats"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    size = sum(path.stat().st_size for path in project.text.iterdir())
    assert figures["bits_per_byte"] == pytest.approx(
        figures["tokens"] * math.log2(tokenizer.vocab_size) / size, rel=1e-5
    )
