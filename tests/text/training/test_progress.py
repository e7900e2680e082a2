"""Progress counts characters while documents are read, and tokens afterwards."""

from slm_fn.text.training import progress


def test_characters_are_counted_after_each_document() -> None:
    reports: list[tuple[int, int]] = []

    def record(num_characters: int, num_tokens: int) -> None:
        reports.append((num_characters, num_tokens))

    documents = progress.report_reading(iter(["abc", "", "de"]), record)
    assert next(documents) == "abc"
    assert reports == []
    assert list(documents) == ["", "de"]
    assert reports == [(3, 0), (3, 0), (5, 0)]


def test_tokens_are_reported_with_all_characters_of_the_counted_chunks() -> None:
    reports: list[tuple[int, int]] = []

    def record(num_characters: int, num_tokens: int) -> None:
        reports.append((num_characters, num_tokens))

    report = progress.report_learning({"ab": 2, "c": 3}, record)
    report(257)
    report(258)
    assert reports == [(7, 257), (7, 258)]
