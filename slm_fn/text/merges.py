"""Learning merges: from chunks and their counts to pairs of pieces, by the plain method and by the quick one.

Both obey one rule: the most frequent adjacent pair is merged first, among equals the one with the smaller left symbol,
then the smaller right one (symbols are numbered: the alphabet in its order, then what merges made); in a chunk it is
merged from left to right. A pair is counted wherever it stands, so "aaa" holds (a, a) twice. Two merges may spell the
same piece, `a+bc` and `ab+c`: it is one symbol, as in every tokenizer that finds pieces by what they spell.

Invariant: `heap` returns what `basic` returns, on any chunks.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

Piece = TypeVar("Piece", str, bytes)
Pair = tuple[int, int]
Words = Mapping[tuple[int, ...], int]
"""Chunks as symbols, each with how often it occurs. Symbol i is the i-th piece of the alphabet."""


def basic(
    words: Words,
    alphabet: Sequence[Piece],
    num_pieces: int,
    min_frequency: int = 1,
    progress: Callable[[int], None] = lambda pieces: None,
) -> list[tuple[Piece, Piece]]:
    """Learn merges the plain way: count all pairs, merge the best one everywhere, repeat. Quadratic, and readable.

    Args:
        num_pieces: stop when there are so many, the alphabet included.
        min_frequency: pairs seen less often are not merged.
        progress: told the number of pieces, after each merge.

    Example:
        >>> basic({(0, 0, 1): 2, (0, 1): 1}, ["a", "b"], num_pieces=4)
        [('a', 'b'), ('a', 'ab')]

    References: arXiv 1508.07909.
    """
    symbols = {piece: symbol for symbol, piece in enumerate(alphabet)}
    pieces, merges = list(alphabet), dict[Pair, None]()
    while len(pieces) < num_pieces:
        counts: Counter[Pair] = Counter()
        for word, count in words.items():
            for pair in pairwise(word):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < min_frequency:
            break
        new = _symbol(best, pieces, symbols)
        merged: Counter[tuple[int, ...]] = Counter()
        for word, count in words.items():
            merged[replace(word, best, new)] += count
        words = merged
        merges[best] = None
        progress(len(pieces))
    return [(pieces[left], pieces[right]) for left, right in merges]


def replace(word: tuple[int, ...], pair: Pair, new: int) -> tuple[int, ...]:
    """A chunk with every occurrence of a pair, from left to right, made one symbol.

    Example:
        >>> replace((0, 0, 0, 1), (0, 0), 2)
        (2, 0, 1)
    """
    out, i = [], 0
    while i < len(word):
        found = word[i : i + 2] == pair
        out.append(new if found else word[i])
        i += 2 if found else 1
    return tuple(out)


def _symbol(pair: Pair, pieces: list[Piece], symbols: dict[Piece, int]) -> int:
    """The symbol that a merge makes: a new one, unless something else has spelt it before."""
    spelt = pieces[pair[0]] + pieces[pair[1]]
    if spelt not in symbols:
        symbols[spelt] = len(pieces)
        pieces.append(spelt)
    return symbols[spelt]


def heap(
    words: Words,
    alphabet: Sequence[Piece],
    num_pieces: int,
    min_frequency: int = 1,
    progress: Callable[[int], None] = lambda pieces: None,
) -> list[tuple[Piece, Piece]]:
    """Learn the same merges in O(n log n) for n symbols: only what a merge touches is counted anew.

    All chunks lie end to end in one row whose places are linked, so a merge is the unlinking of a place. For every pair
    the places where it may begin are kept, and the pairs lie in a heap by count. Places and heap entries go stale and
    are checked when they are taken.

    Args:
        progress: told the number of pieces, after each merge.

    Example:
        >>> heap({(0, 0, 1): 2, (0, 1): 1}, ["a", "b"], num_pieces=4)
        [('a', 'b'), ('a', 'ab')]
    """
    symbols = {piece: symbol for symbol, piece in enumerate(alphabet)}
    pieces, merges = list(alphabet), dict[Pair, None]()
    row = _Row(words)
    queue = [(-count, pair) for pair, count in row.counts.items()]
    heapq.heapify(queue)
    while len(pieces) < num_pieces and queue:
        count, pair = heapq.heappop(queue)
        now = row.counts.get(pair, 0)
        if now != -count:
            if now > 0:
                heapq.heappush(queue, (-now, pair))
            continue
        if now < max(1, min_frequency):
            break
        for other in row.merge(pair, _symbol(pair, pieces, symbols)):
            heapq.heappush(queue, (-row.counts[other], other))
        merges[pair] = None
        progress(len(pieces))
    return [(pieces[left], pieces[right]) for left, right in merges]


_GONE = -1


class _Row:
    """All chunks end to end: symbols, links to both sides, each place's weight, and every pair's count and places."""

    def __init__(self, words: Words) -> None:
        self.symbols: list[int] = []
        self.after: list[int] = []
        self.before: list[int] = []
        self.weights: list[int] = []
        self.counts: dict[Pair, int] = {}
        self.places: dict[Pair, list[int]] = {}
        for word, count in words.items():
            begin, end = len(self.symbols), len(self.symbols) + len(word)
            self.symbols += word
            self.before += [_GONE, *range(begin, end - 1)] if word else []
            self.after += [*range(begin + 1, end), _GONE] if word else []
            self.weights += [count] * len(word)
            for place, pair in enumerate(pairwise(word), begin):
                self.counts[pair] = self.counts.get(pair, 0) + count
                self.places.setdefault(pair, []).append(place)

    def merge(self, pair: Pair, new: int) -> Iterable[Pair]:
        """Make a pair one symbol wherever it stands; returns the pairs that have become more frequent."""
        symbols, after, before, counts, places = self.symbols, self.after, self.before, self.counts, self.places
        left, right = pair
        grown: dict[Pair, None] = {}
        for place in sorted(set(places.pop(pair))):
            partner = after[place]
            if symbols[place] != left or partner == _GONE or symbols[partner] != right:
                continue
            weight, previous, following = self.weights[place], before[place], after[partner]
            if previous != _GONE:
                counts[symbols[previous], left] -= weight
                made = (symbols[previous], new)
                counts[made] = counts.get(made, 0) + weight
                places.setdefault(made, []).append(previous)
                grown[made] = None
            if following != _GONE:
                counts[right, symbols[following]] -= weight
                made = (new, symbols[following])
                counts[made] = counts.get(made, 0) + weight
                places.setdefault(made, []).append(place)
                grown[made] = None
                before[following] = place
            symbols[place], symbols[partner], after[place] = new, _GONE, following
        del counts[pair]
        return grown
