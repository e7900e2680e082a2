"""Counts are exact below the cap; above it memory is bounded and the frequent stay."""

from collections import Counter

from slm_fn.text.training import chunk_counts


def test_below_the_cap_counts_are_exact() -> None:
    assert chunk_counts.count_chunks(["a b a", "b c"], str.split, max_chunks=3) == Counter(
        a=2, b=2, c=1
    )


def test_above_the_cap_the_rare_go_and_the_frequent_are_exact() -> None:
    most, largest = 100, 0

    def split(text: str) -> list[str]:
        return text.split()

    counts: Counter[str] = Counter()
    documents = [f"often also rare{i} seldom{i}" for i in range(1000)]

    def watched() -> list[str]:
        return documents

    counts = chunk_counts.count_chunks(watched(), split, max_chunks=most)
    largest = len(counts)
    assert largest <= most
    assert counts["often"] == counts["also"] == 1000


def test_what_goes_is_the_rarest() -> None:
    counts = Counter(a=9, b=3, c=3, d=1)
    assert chunk_counts.drop_rarest(counts, 3) == Counter(a=9, b=3, c=3)
    assert chunk_counts.drop_rarest(counts, 2) == Counter(a=9)
    assert chunk_counts.drop_rarest(counts, 4) == counts


def test_a_cut_goes_down_to_half_so_that_it_is_rare() -> None:
    counts = chunk_counts.count_chunks(
        ["a b c d e f g h", "a b c d e f", "a b c d", "z"], str.split, max_chunks=8
    )
    assert counts == Counter(a=3, b=3, c=3, d=3)
