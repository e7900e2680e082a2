"""serve/queue.py: identities take turns, in the order they came, and who left leaves nothing behind."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.serve.queue import Line


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=30))
def test_nobody_waits_for_two_of_another(asked):
    gone = {i for i, (_, left) in enumerate(asked) if left}
    line = Line[int](gone.__contains__)
    for i, (who, _) in enumerate(asked):
        line.push(who, i)
    assert len(line) == len(asked) - len(gone)
    out = []
    while (item := line.pop()) is not None:
        out.append(item)
    assert sorted(out) == [i for i in range(len(asked)) if i not in gone]
    for who in "abc":
        own = [i for i in out if asked[i][0] == who]
        assert own == sorted(own)
        for a, b in pairwise(own):
            between = [asked[i][0] for i in out[out.index(a) + 1 : out.index(b)]]
            assert all(between.count(other) <= 1 for other in "abc")


def test_the_sweep_forgets():
    line = Line[int](lambda item: item > 5)
    for i in range(10):
        line.push(str(i), i)
    line.sweep()
    assert len(line.lines) == 6
