"""serve/protocol/logprobs.py: texts and offsets of tokens in responses."""

from slm_fn.serve.protocol import logprobs
from slm_fn.serve.protocol.logprobs import TextOffset, TokenFormatter, TokenLogprob


def test_no_two_tokens_have_the_same_unique_text(scripted_model):
    formatter = TokenFormatter(scripted_model.tokenizer)
    ids = range(scripted_model.tokenizer.vocab_size + 3)
    assert len({formatter.to_unique_text(i) for i in ids}) == len(ids)
    assert formatter.to_bytes(scripted_model.tokenizer.special_id("<|end|>")) is None


def test_completion_logprobs_have_offsets_and_the_chosen_token(scripted_model):
    ids = scripted_model.tokenizer.encode("hé")
    offset = TextOffset()
    offset.advance(b"four")
    tokens = [TokenLogprob(i, -1.5, ((0, -0.5),)) for i in ids]
    formatted = logprobs.completion_logprobs(
        TokenFormatter(scripted_model.tokenizer), tokens, offset
    )
    assert formatted["text_offset"] == [4, 5, 5][: len(ids)]
    assert all(-1.5 in top.values() and -0.5 in top.values() for top in formatted["top_logprobs"])
    assert logprobs.to_finite(float("-inf")) == -9999.0
