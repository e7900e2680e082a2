"""Every reply is compared with the model's."""

from slm_fn.bench.serve.checks import find_mismatch
from slm_fn.bench.serve.clients import ClientResult, LoadRequest


def test_replies_that_differ_from_the_model_s_are_mismatches():
    request = LoadRequest("/", {}, "one two", "stop", 3)
    good = ClientResult("complete", 200, "one two", "stop", True, 3)
    disconnected = good._replace(kind="disconnecting", text="one", is_done=False, finish=None)
    assert find_mismatch(request, good) == ""
    assert find_mismatch(request, disconnected) == ""
    wrong_fields = ({"text": "one tw"}, {"finish": "length"}, {"num_tokens": 4}, {"is_done": False})
    for fields in wrong_fields:
        assert find_mismatch(request, good._replace(**fields))
    assert find_mismatch(request, disconnected._replace(text="two", finish="stop"))
    assert find_mismatch(request, good._replace(kind="disconnecting", text="one"))
