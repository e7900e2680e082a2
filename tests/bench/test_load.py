"""bench/load.py: what is wrong is seen, and clients come by their shares."""

from slm_fn.bench import load
from slm_fn.bench.load import Heard, Task


def test_what_is_wrong_is_seen():
    task = Task("/", {}, "one two", "stop", 3)
    good = Heard("polite", 200, "one two", "stop", True, 3)
    assert load.wrong(task, good) == ""
    assert load.wrong(task, good._replace(kind="leaving", text="one", done=False, finish=None)) == ""
    for bad in ({"text": "one tw"}, {"finish": "length"}, {"num_tokens": 4}, {"done": False}):
        assert load.wrong(task, good._replace(**bad))
    assert load.wrong(task, good._replace(kind="leaving", text="two", done=False))
    assert load.wrong(task, good._replace(kind="leaving", text="one"))


def test_clients_of_every_kind_come_by_their_share():
    kinds = [load.kind_of(key) for key in range(3000)]
    for kind, share in load.SHARES.items():
        assert abs(kinds.count(kind) / 3000 - share / 100) < 0.03
