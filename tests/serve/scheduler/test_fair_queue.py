"""serve/scheduler/fair_queue.py: clients take turns; cancelled items are removed."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from slm_fn.serve.scheduler.fair_queue import FairQueue

CLIENTS = "abc"


@given(st.lists(st.tuples(st.sampled_from(CLIENTS), st.booleans()), max_size=30))
def test_between_two_items_of_a_client_each_other_client_has_at_most_one(requests):
    clients = [client for client, _ in requests]
    cancelled = {i for i, (_, is_cancelled) in enumerate(requests) if is_cancelled}
    queue = FairQueue[int](cancelled.__contains__)
    for i, client in enumerate(clients):
        queue.push(client, i)
    assert len(queue) == len(requests) - len(cancelled)
    served = []
    while (item := queue.pop()) is not None:
        served.append(item)
    assert sorted(served) == [i for i in range(len(requests)) if i not in cancelled]
    for client in CLIENTS:
        own = [i for i in served if clients[i] == client]
        assert own == sorted(own)
        for first, second in pairwise(own):
            between = served[served.index(first) + 1 : served.index(second)]
            clients_between = [clients[i] for i in between]
            assert all(clients_between.count(other) <= 1 for other in CLIENTS)


def test_cancelled_items_and_their_clients_are_removed():
    queue = FairQueue[int](lambda item: item > 5)
    for i in range(10):
        queue.push(str(i), i)
    queue.remove_cancelled()
    assert len(queue.queues) == 6
