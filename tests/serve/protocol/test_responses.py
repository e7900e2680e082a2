"""serve/protocol/responses.py: deltas join to the reply; chunks have the endpoint's fields."""

import json

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.serve.protocol import responses
from slm_fn.serve.protocol.logprobs import TokenLogprob
from slm_fn.serve.protocol.responses import CHAT_FORMAT, COMPLETION_FORMAT, OutputDelta


@given(st.lists(st.text(), min_size=1))
def test_joined_deltas_are_the_complete_output(texts):
    deltas = [OutputDelta(2, text, (TokenLogprob(i, -1.0),)) for i, text in enumerate(texts)]
    deltas[-1] = deltas[-1]._replace(finish="stop", num_tokens=len(texts))
    joined = responses.join_deltas(deltas)
    assert joined.text == "".join(texts)
    assert [each.id for each in joined.logprobs] == list(range(len(texts)))
    assert (joined.choice_index, joined.finish) == (2, "stop")
    assert joined.num_tokens == len(texts)


def test_a_chunk_has_the_object_of_its_endpoint():
    for endpoint, name in (
        (CHAT_FORMAT, "chat.completion.chunk"),
        (COMPLETION_FORMAT, "text_completion"),
    ):
        choice = endpoint.make_delta_choice(0, "a", None, None)
        event = responses.encode_chunk(endpoint, {"id": "x"}, [choice], {"usage": None})
        body = json.loads(event.removeprefix(b"data: "))
        assert body["object"] == name
        assert body["usage"] is None
        assert "a" in str(body["choices"])
