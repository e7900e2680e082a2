"""Duplicates against brute-force Jaccard; saving and restoring an index changes nothing."""

import io
import pydoc_data.topics
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slm_fn.data.clean import dedup
from slm_fn.data.clean.dedup import DedupIndex
from slm_fn.data.clean.minhash import DedupConfig, Sketch, fold_text, make_sketch

CONFIG = DedupConfig()


def real() -> list[str]:
    """Some 170 texts of 300 to 600 words of Python's own documentation."""
    originals = []
    for text in pydoc_data.topics.topics.values():
        words = text.split(" ")
        originals += [" ".join(words[i : i + 600]) for i in range(0, len(words) - 300, 600)]
    return list(dict.fromkeys(originals))


def mutated(text: str, changes: int, draw: random.Random) -> str:
    words = text.split(" ")
    for position in draw.sample(range(len(words)), min(changes, len(words))):
        words[position] = f"new{draw.randrange(10**6)}"
    return " ".join(words)


def corpus() -> list[str]:
    """Real texts, a quarter of them in capitals too, and versions with 1 to 30 words changed."""
    draw = random.Random(0)
    originals = real()
    texts = [*originals, *(text.upper() + "\n" for text in originals[::4])]
    texts += [
        mutated(text, changes, draw) for text in originals for changes in (1, 2, 5, 8, 12, 30)
    ]
    draw.shuffle(texts)
    return texts


def run(texts: list[Any], index: DedupIndex) -> list[str | None]:
    """What the index found for each text; only texts without a duplicate are added."""
    said = []
    for text in texts:
        said.append(index.find_duplicate(text))
        if said[-1] is None:
            index.add(text)
    return said


def restore(config: DedupConfig, *saved: dict[str, np.ndarray]) -> DedupIndex:
    index = DedupIndex(config)
    index.extend(*saved)
    return index


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    words = "".join(c if c.isalnum() or ord(c) > 127 else " " for c in fold_text(text)).split()
    return frozenset(tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4)))


def test_results_agree_with_brute_force() -> None:
    texts = corpus()
    said = run(texts, DedupIndex(CONFIG))
    sets, folded = [shingles(text) for text in texts], [fold_text(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    best, exact, kept = [], [], set()  # over all that this very run had kept
    for i, why in enumerate(said):
        shared = Counter(k for shingle in sets[i] for k in holders.get(shingle, ()))
        best.append(
            max((n / (len(sets[i]) + len(sets[k]) - n) for k, n in shared.items()), default=0.0)
        )
        exact.append(folded[i] in kept)
        if why is None:
            kept.add(folded[i])
            for shingle in sets[i]:
                holders.setdefault(shingle, []).append(i)
    assert len(texts) > 600
    assert [why == "exact" for why in said] == exact
    near = [
        (similarity, why == "near")
        for similarity, why, same in zip(best, said, exact, strict=True)
        if not same
    ]
    hits = sum(found for similarity, found in near if similarity >= 0.8)
    recall = hits / sum(similarity >= 0.8 for similarity, _ in near)
    precision = hits / sum(found for _, found in near)
    clear = [found for similarity, found in near if similarity >= 0.9]
    assert len(clear) > 100
    assert all(clear), "nothing well above the threshold is missed"
    assert not any(found for similarity, found in near if similarity < 0.68), (
        "nothing well below it is taken"
    )
    print(f"recall {recall:.3f} precision {precision:.3f} of {len(near)}, {len(clear)} clear")
    assert recall > 0.9
    assert precision > 0.9


def test_the_first_is_kept() -> None:
    text = real()[0]
    versions = [
        text,
        text.upper(),
        text + " and more",
        "  " + text,
        text.replace(",", ";"),
        "something else entirely",
    ]
    assert run(versions, DedupIndex(CONFIG)) == [None, "exact", "near", "exact", "near", None]
    assert run(versions[::-1], DedupIndex(CONFIG)) == [None, None, "near", "near", "near", "near"]


def test_without_words_only_the_very_same_is_a_duplicate() -> None:
    assert run(["...", "....", " ... ", "!", ""], DedupIndex(CONFIG)) == [
        None,
        None,
        "exact",
        None,
        None,
    ]


def test_a_lookup_changes_nothing_and_a_sketch_replaces_its_text() -> None:
    texts = corpus()[:150]
    index = DedupIndex(CONFIG)
    before = {name: array.tobytes() for name, array in index.to_arrays().items()}
    assert [index.find_duplicate(text) for text in texts[:5]] == [None] * 5
    assert {name: array.tobytes() for name, array in index.to_arrays().items()} == before
    assert run([make_sketch(text, CONFIG) for text in texts], DedupIndex(CONFIG)) == run(
        texts, DedupIndex(CONFIG)
    )


FAMILY = 1400


def family() -> list[Sketch]:
    """Sketches that share many bands without being near; more than the initial capacity."""
    draw = np.random.default_rng(0)
    center = draw.integers(0, 256, 128, np.uint8)
    noise = draw.integers(0, 256, (FAMILY, 128), np.uint8)
    rate = draw.uniform(0.05, 0.7, (FAMILY, 1))
    rows = np.where(draw.random((FAMILY, 128)) < rate, noise, center)
    return [Sketch(int(i // 1.1).to_bytes(16, "little"), row) for i, row in enumerate(rows)]


@settings(max_examples=3, deadline=None)
@given(cuts=st.lists(st.integers(0, FAMILY), max_size=4), longest=st.sampled_from([3, 256]))
def test_saving_and_restoring_at_any_moment_changes_nothing(cuts: list[int], longest: int) -> None:
    sketches = family()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "MAX_CHAIN_LENGTH", longest)
        index = DedupIndex(CONFIG)
        want = run(sketches, index)
        assert {None, "near", "exact"} == set(want)
        assert len(index) == want.count(None) > 1024
        said: list[str | None] = []
        parts: list[dict[str, np.ndarray]] = []
        for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), FAMILY], strict=True):
            other = restore(CONFIG, *parts)
            start = len(other)
            said += run(sketches[first:last], other)
            parts.append(other.to_arrays(start))
        assert said == want
        assert sum(len(part["digests"]) for part in parts) == len(index)


@pytest.mark.parametrize(("longest", "said"), [(20, None), (40, None), (41, "near"), (256, "near")])
def test_a_chain_is_followed_up_to_its_maximum_length(
    longest: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dedup, "MAX_CHAIN_LENGTH", longest)
    row, place = np.arange(128, dtype=np.uint8), np.arange(128)
    index = DedupIndex(CONFIG)
    index.add(Sketch(bytes(16), row))
    for i in range(1, 81):  # every band of `row` is shared by 40 others, half like it
        shared = place < 66 if i % 2 else place >= 66
        index.add(Sketch(i.to_bytes(16, "big"), np.where(shared, row, 255 - row).astype(np.uint8)))
    assert index.find_duplicate(Sketch(b"x" * 16, row)) == said


def test_arrays_are_saved_without_pickle_and_are_small() -> None:
    index = DedupIndex(CONFIG)
    for one in family():
        index.add(one)
    file = io.BytesIO()
    np.savez(file, **index.to_arrays())
    assert file.tell() < FAMILY * 144 + 2000
    file.seek(0)
    again = restore(CONFIG, dict(np.load(file, allow_pickle=False)))
    assert [again.find_duplicate(one) for one in family()[:300]] == ["exact"] * 300
    room = sum(array.nbytes for array in vars(index).values() if isinstance(array, np.ndarray))
    assert room / 2048 == 16 + 128 + 22 * 8, "bytes per slot, of which there are 2048"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digests": None}, "not a saved index of duplicates: it lacks digests; prepare again"),
        ({"digests": np.zeros((2, 8), np.uint8)}, r"damaged: digests uint8 \(2, 8\)"),
        (
            {"signatures": np.zeros((3, 128), np.uint8)},
            r"signatures uint8 \(3, 128\) are not bytes of",
        ),
        ({"signatures": np.zeros((2, 128), np.int64)}, "damaged"),
        (
            {"settings": np.frombuffer(b"{}", np.uint8)},
            r'was saved with \{\}, this run has \{"version":1',
        ),
    ],
)
def test_invalid_arrays_are_rejected(change: dict[str, Any], message: str) -> None:
    index = DedupIndex(CONFIG)
    for text in ("one", "two"):
        index.add(text)
    saved = {
        name: array for name, array in {**index.to_arrays(), **change}.items() if array is not None
    }
    with pytest.raises(ValueError, match=message) as error:
        restore(CONFIG, index.to_arrays(), saved)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "other", [DedupConfig(seed=1), DedupConfig(threshold=0.9), DedupConfig(num_perm=64)]
)
def test_an_index_of_other_settings_is_rejected(other: DedupConfig) -> None:
    with pytest.raises(ValueError, match=r"was saved with .*prepare again, or keep the settings"):
        restore(other, DedupIndex(CONFIG).to_arrays())
