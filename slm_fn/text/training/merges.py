"""Learning BPE merges from counted chunks, by the textbook algorithm and by a fast one.

Both follow one rule. The most frequent adjacent pair is merged first; of equally frequent pairs,
the one with the smaller left symbol, then the smaller right symbol. Symbols are numbered: first the
alphabet in its order, then the results of merges. Within a chunk a pair is merged from left to
right. Every occurrence of a pair counts, so "aaa" holds (a, a) twice. Two merges may produce the
same token, `a+bc` and `ab+c`: it is one symbol, as in every tokenizer that finds tokens by content.

Invariant: `learn_heap` returns what `learn_basic` returns, on any chunks.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

Token = TypeVar("Token", str, bytes)
Pair = tuple[int, int]
SymbolChunks = Mapping[tuple[int, ...], int]
"""Chunks as symbols, with the number of occurrences. Symbol i is token i of the alphabet."""

_NO_POSITION = -1


def ignore_token_count(num_tokens: int) -> None:
    """Discards a progress report."""


def learn_basic(
    chunks: SymbolChunks,
    alphabet: Sequence[Token],
    num_tokens: int,
    min_frequency: int = 1,
    progress: Callable[[int], None] = ignore_token_count,
) -> list[tuple[Token, Token]]:
    """Learns merges by the textbook algorithm: count all pairs, merge the best one, repeat.

    Quadratic in time, and easy to read.

    Args:
        chunks: the corpus.
        alphabet: the tokens before any merge.
        num_tokens: stop at this many tokens, the alphabet included.
        min_frequency: pairs that occur less often are not merged.
        progress: receives the number of tokens after each merge.

    Returns:
        The merges in the order in which they were learned.

    Example:
        >>> learn_basic({(0, 0, 1): 2, (0, 1): 1}, ["a", "b"], num_tokens=4)
        [('a', 'b'), ('a', 'ab')]

    References: arXiv 1508.07909.
    """
    tokens = list(alphabet)
    symbol_of = {token: symbol for symbol, token in enumerate(alphabet)}
    merges: dict[Pair, None] = {}
    while len(tokens) < num_tokens:
        counts = _count_pairs(chunks)
        best = _most_frequent_pair(counts)
        if best is None or counts[best] < min_frequency:
            break
        new_symbol = _add_token(best, tokens, symbol_of)
        chunks = _merge_in_all_chunks(chunks, best, new_symbol)
        merges[best] = None
        progress(len(tokens))
    return [(tokens[left], tokens[right]) for left, right in merges]


def _count_pairs(chunks: SymbolChunks) -> Counter[Pair]:
    counts: Counter[Pair] = Counter()
    for symbols, count in chunks.items():
        for pair in pairwise(symbols):
            counts[pair] += count
    return counts


def _most_frequent_pair(counts: Counter[Pair]) -> Pair | None:
    def merge_order(pair: Pair) -> tuple[int, Pair]:
        return -counts[pair], pair

    return min(counts, key=merge_order, default=None)


def _merge_in_all_chunks(chunks: SymbolChunks, pair: Pair, new_symbol: int) -> SymbolChunks:
    merged: Counter[tuple[int, ...]] = Counter()
    for symbols, count in chunks.items():
        merged[replace_pair(symbols, pair, new_symbol)] += count
    return merged


def replace_pair(symbols: tuple[int, ...], pair: Pair, new_symbol: int) -> tuple[int, ...]:
    """Returns a chunk with every occurrence of a pair, from left to right, made one symbol.

    Example:
        >>> replace_pair((0, 0, 0, 1), (0, 0), 2)
        (2, 0, 1)
    """
    replaced: list[int] = []
    position = 0
    while position < len(symbols):
        if symbols[position : position + 2] == pair:
            replaced.append(new_symbol)
            position += 2
        else:
            replaced.append(symbols[position])
            position += 1
    return tuple(replaced)


def _add_token(pair: Pair, tokens: list[Token], symbol_of: dict[Token, int]) -> int:
    """Returns the symbol that a merge produces: a new one, unless its token exists already."""
    left, right = pair
    token = tokens[left] + tokens[right]
    if token not in symbol_of:
        symbol_of[token] = len(tokens)
        tokens.append(token)
    return symbol_of[token]


def learn_heap(
    chunks: SymbolChunks,
    alphabet: Sequence[Token],
    num_tokens: int,
    min_frequency: int = 1,
    progress: Callable[[int], None] = ignore_token_count,
) -> list[tuple[Token, Token]]:
    """Learns the merges of `learn_basic` in O(n log n) for n symbols.

    Only the pairs next to a merge are counted again. The chunks are stored end to end in one linked
    list, and a merge unlinks one position. Every pair keeps the positions where it may begin, and a
    heap orders the pairs by count. Positions and heap entries can be stale; they are checked when
    they are taken.

    Args:
        chunks: the corpus.
        alphabet: the tokens before any merge.
        num_tokens: stop at this many tokens, the alphabet included.
        min_frequency: pairs that occur less often are not merged.
        progress: receives the number of tokens after each merge.

    Returns:
        The merges in the order in which they were learned.

    Example:
        >>> learn_heap({(0, 0, 1): 2, (0, 1): 1}, ["a", "b"], num_tokens=4)
        [('a', 'b'), ('a', 'ab')]
    """
    tokens = list(alphabet)
    symbol_of = {token: symbol for symbol, token in enumerate(alphabet)}
    merges: dict[Pair, None] = {}
    corpus = _LinkedCorpus(chunks)
    queue = [(-count, pair) for pair, count in corpus.counts.items()]
    heapq.heapify(queue)
    while len(tokens) < num_tokens and queue:
        negative_count, pair = heapq.heappop(queue)
        count = corpus.counts.get(pair, 0)
        if count != -negative_count:
            if count > 0:
                heapq.heappush(queue, (-count, pair))
            continue
        if count < max(1, min_frequency):
            break
        new_symbol = _add_token(pair, tokens, symbol_of)
        for grown in corpus.merge(pair, new_symbol):
            heapq.heappush(queue, (-corpus.counts[grown], grown))
        merges[pair] = None
        progress(len(tokens))
    return [(tokens[left], tokens[right]) for left, right in merges]


class _LinkedCorpus:
    """All chunks end to end as a doubly linked list, with the count and positions of every pair.

    For each position: its symbol, the next and previous position of its chunk, and how often the
    chunk occurs.
    """

    def __init__(self, chunks: SymbolChunks) -> None:
        self.symbols: list[int] = []
        self.next: list[int] = []
        self.previous: list[int] = []
        self.weights: list[int] = []
        self.counts: dict[Pair, int] = {}
        self.positions: dict[Pair, list[int]] = {}
        for symbols, count in chunks.items():
            if symbols:
                self._append(symbols, count)

    def _append(self, symbols: tuple[int, ...], count: int) -> None:
        begin = len(self.symbols)
        end = begin + len(symbols)
        self.symbols += symbols
        self.previous += [_NO_POSITION, *range(begin, end - 1)]
        self.next += [*range(begin + 1, end), _NO_POSITION]
        self.weights += [count] * len(symbols)
        for position, pair in enumerate(pairwise(symbols), begin):
            self.counts[pair] = self.counts.get(pair, 0) + count
            self.positions.setdefault(pair, []).append(position)

    def merge(self, pair: Pair, new_symbol: int) -> Iterable[Pair]:
        """Makes a pair one symbol everywhere; returns the pairs that became more frequent."""
        symbols = self.symbols
        next_position = self.next
        counts = self.counts
        left, right = pair
        grown: dict[Pair, None] = {}
        for position in sorted(set(self.positions.pop(pair))):
            partner = next_position[position]
            if symbols[position] != left or partner == _NO_POSITION or symbols[partner] != right:
                continue
            weight = self.weights[position]
            before = self.previous[position]
            after = next_position[partner]
            if before != _NO_POSITION:
                counts[symbols[before], left] -= weight
                new_pair = (symbols[before], new_symbol)
                self._add_occurrence(new_pair, before, weight)
                grown[new_pair] = None
            if after != _NO_POSITION:
                counts[right, symbols[after]] -= weight
                new_pair = (new_symbol, symbols[after])
                self._add_occurrence(new_pair, position, weight)
                grown[new_pair] = None
                self.previous[after] = position
            symbols[position] = new_symbol
            symbols[partner] = _NO_POSITION
            next_position[position] = after
        del counts[pair]
        return grown

    def _add_occurrence(self, pair: Pair, position: int, weight: int) -> None:
        self.counts[pair] = self.counts.get(pair, 0) + weight
        self.positions.setdefault(pair, []).append(position)
