"""The clients of a load test come by their shares."""

from slm_fn.bench.serve import clients


def test_clients_of_every_kind_come_by_their_share():
    kinds = [clients.choose_kind(key) for key in range(3000)]
    for kind, percent in clients.PERCENT_BY_KIND.items():
        assert abs(kinds.count(kind) / 3000 - percent / 100) < 0.03
