"""cli/evaluate.py: `slm eval ppl` says what a uniform model must score."""

import json
import math

import pytest
import torch
from click.testing import CliRunner

from slm_fn.cli.evaluate import command
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Generation
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.train import checkpoint


@pytest.fixture
def uniform(road, tmp_path):
    """A model folder whose every logit is zero."""
    tokenizer = Tokenizer.load(road.tokenizer)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=1, num_kv_heads=1, ffn_dim=16, context=32
    )
    params = gpt.init(config, 0)
    checkpoint.save_tree(tmp_path / checkpoint.WEIGHTS, {**params, "embed": torch.zeros_like(params["embed"])})
    for name, data in models.describe(config, tokenizer, Generation()).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path, tokenizer


def test_uniform_guessing_is_ln_v_per_token(road, uniform):
    place, tokenizer = uniform
    args = ["ppl", str(place), "--data", str(road.text), "--device", "cpu", "--json"]
    found = json.loads(CliRunner().invoke(command, args, catch_exceptions=False).stdout)
    assert found["loss_nats"] == pytest.approx(math.log(tokenizer.vocab_size), rel=1e-5)
    assert found["perplexity"] == pytest.approx(tokenizer.vocab_size, rel=1e-4)
    size = sum(path.stat().st_size for path in road.text.iterdir())
    assert found["bits_per_byte"] == pytest.approx(found["tokens"] * math.log2(tokenizer.vocab_size) / size, rel=1e-5)
