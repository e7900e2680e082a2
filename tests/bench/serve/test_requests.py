"""Requests of a load test can be made again, and carry the model's own reply."""

from slm_fn.bench.serve.requests import make_chat_request
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.model_folder import GenerationConfig, Model
from slm_fn.text.training import bpe


def test_requests_carry_the_model_s_reply(rough):
    tokenizer = bpe.train(["to be or not to be"] * 3, vocab_size=270)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        ffn_dim=32,
        context=96,
    )
    model = Model(config, rough(config), tokenizer, GenerationConfig())
    requests = [make_chat_request(model, key) for key in range(6)]
    assert requests[:2] == [make_chat_request(model, key) for key in range(2)]
    assert len({request.expected_text for request in requests}) > 3
    for request in requests:
        assert 0 < request.expected_tokens <= request.body["max_tokens"]
        assert request.expected_finish in ("stop", "length")
