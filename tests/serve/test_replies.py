"""serve/replies.py, prompts.py, gate.py, access.py, metrics.py, listen.py: the small parts by themselves."""

import pytest

from slm_fn.infer.sample import SampleConfig
from slm_fn.pipeline import talk
from slm_fn.serve import access, gate, listen, metrics, prompts, replies
from slm_fn.serve.errors import ApiError
from slm_fn.serve.protocol import Order
from slm_fn.serve.replies import Names, Said
from slm_fn.text.chat import Message


def test_no_two_tokens_share_a_name(parrot):
    names = Names(parrot.tokenizer)
    ids = range(parrot.tokenizer.vocab_size + 3)
    assert len({names.unique(i) for i in ids}) == len(ids)
    assert names.data(parrot.tokenizer.special("<|end|>")) is None


def test_completions_logprobs_have_offsets_and_the_chosen_token(parrot):
    ids = parrot.tokenizer.encode("hé")
    place = replies.Place()
    place.take(b"four")
    told = replies.text_logprobs(Names(parrot.tokenizer), [Said(i, -1.5, ((0, -0.5),)) for i in ids], place)
    assert told["text_offset"] == [4, 5, 5][: len(ids)]
    assert all(-1.5 in top.values() and -0.5 in top.values() for top in told["top_logprobs"])
    assert replies.finite(float("-inf")) == -9999.0


def test_a_conversation_is_ids_of_which_the_system_message_s_are_shared(parrot):
    asked = [Message("system", "be brief"), Message("user", "hello")]
    found = prompts.chat_prompt(parrot, asked, Order(SampleConfig(), 0))
    assert found == (talk.chat_ids(parrot, asked), talk.shared(parrot, asked))
    assert prompts.chat_prompt(parrot, asked[1:], Order(SampleConfig(), 0)).shared == 0
    with pytest.raises(ApiError) as error:
        prompts.chat_prompt(parrot, [Message("user", "hello " * 300)], Order(SampleConfig(), 0))
    assert error.value.code == "context_length_exceeded"


def test_a_line_is_written_once(caplog):
    scope = {"type": "http", "method": "GET", "path": "/x", "client": ("1.2.3.4", 5)}
    with caplog.at_level("INFO", "slm.access"):
        access.write(scope, status=499)
        access.write(scope)
    assert len(caplog.records) == 1
    assert '"status":499' in caplog.text


def test_hosts_series_and_ports():
    assert gate.hostname("[") is None
    assert b"slm_waiting 3.0" in metrics.Metrics(lambda: 3, lambda: 0).text()
    with listen.listen("127.0.0.1", 0) as taken, pytest.raises(ValueError, match="cannot listen on"):
        listen.listen("127.0.0.1", taken.getsockname()[1])
