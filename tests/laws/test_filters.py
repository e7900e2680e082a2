"""Laws of every sampling filter: what it keeps by brute force, and rows that do not see each other.

A new filter joins by its line in `ORACLES`.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slm_fn.core import random
from slm_fn.infer import sampling
from slm_fn.infer.filters import FILTERS, TokenHistory
from slm_fn.infer.sampling import SampleConfig

V = 9
NEVER = -math.inf
NEAR = 1e-5  # values nearer than that to a threshold may be rounded to either side


class Oracle(NamedTuple):
    """Values of a setting, and one row by the definition: `(logits, value, history) -> logits`."""

    values: st.SearchStrategy[Any]
    row: Callable[[list[float], Any, TokenHistory], list[float]]


def softmax(row: list[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [w / sum(weights) for w in weights]


def keep(row: list[float], ids: Any) -> list[float]:
    kept = set(ids)
    return [x if i in kept else NEVER for i, x in enumerate(row)]


def fewest(row: list[float], order: list[int], mass: float) -> list[float]:
    """The shortest beginning of an order that reaches a mass."""
    p, total, kept = softmax(row), 0.0, []
    for i in order:
        assume(abs(total - mass) > NEAR)
        if total >= mass:
            break
        kept.append(i)
        total += p[i]
    return keep(row, kept)


def repetition(row: list[float], factor: float, history: TokenHistory) -> list[float]:
    used = {*history.prompt, *history.reply}
    return [(x / factor if x > 0 else x * factor) if i in used else x for i, x in enumerate(row)]


def frequency(row: list[float], penalty: float, history: TokenHistory) -> list[float]:
    return [x - penalty * list(history.reply).count(i) for i, x in enumerate(row)]


def presence(row: list[float], penalty: float, history: TokenHistory) -> list[float]:
    return [x - penalty * (i in history.reply) for i, x in enumerate(row)]


def bad_words(row: list[float], words: Any, history: TokenHistory) -> list[float]:
    text = [*history.prompt, *history.reply]
    banned = {w[-1] for w in words if [*text, w[-1]][-len(w) :] == list(w)}
    out = [NEVER if i in banned else x for i, x in enumerate(row)]
    return out if max(out) > NEVER else row


def temperature(row: list[float], t: float, history: TokenHistory) -> list[float]:
    best = max(row)
    return (
        [(x - best) / t for x in row]
        if t
        else [0.0 if i == row.index(best) else NEVER for i in range(V)]
    )


def top_k(row: list[float], k: int, history: TokenHistory) -> list[float]:
    return [x if x >= sorted(row)[-min(k, V)] else NEVER for x in row]


def top_p(row: list[float], p: float, history: TokenHistory) -> list[float]:
    return fewest(row, sorted(range(V), key=lambda i: -row[i]), p)


def typical(row: list[float], mass: float, history: TokenHistory) -> list[float]:
    p = softmax(row)
    entropy = -sum(x * math.log(x) for x in p if x)
    far = [abs(-math.log(x) - entropy) if x else math.inf for x in p]
    order = sorted(range(V), key=lambda i: far[i])
    assume(
        all(row[a] == row[b] or far[b] - far[a] > NEAR for a, b in pairwise(order) if p[a] and p[b])
    )
    return fewest(row, order, mass)


def min_p(row: list[float], least: float, history: TokenHistory) -> list[float]:
    p = softmax(row)
    assume(all(abs(x - least * max(p)) > 1e-7 or x == max(p) for x in p))
    return keep(row, (i for i in range(V) if p[i] >= least * max(p)))


def quarters(least: int, most: int) -> st.SearchStrategy[float]:
    """Multiples of 1/4: their sums are exact in float32; many rows have equal numbers."""
    return st.integers(least, most).map(lambda x: x / 4)


ids = st.integers(0, V - 1)
shares = st.floats(0.0078125, 0.9990234375, width=32)
ORACLES = {
    "repetition_penalty": Oracle(quarters(1, 12), repetition),
    "frequency_penalty": Oracle(quarters(-8, 8), frequency),
    "presence_penalty": Oracle(quarters(-8, 8), presence),
    "logit_bias": Oracle(
        st.dictionaries(ids, quarters(-400, 400), min_size=1, max_size=4),
        lambda row, biases, history: [x + biases.get(i, 0) for i, x in enumerate(row)],
    ),
    "bad_words": Oracle(
        st.lists(st.lists(ids, min_size=1, max_size=3).map(tuple), max_size=V).map(tuple), bad_words
    ),
    "temperature": Oracle(
        st.one_of(st.just(0.0), st.floats(0.01, 50).filter(lambda t: t != 1)), temperature
    ),
    "top_k": Oracle(st.integers(1, V + 2), top_k),
    "typical_p": Oracle(shares, typical),
    "top_p": Oracle(shares, top_p),
    "min_p": Oracle(shares, min_p),
}
logit = st.one_of(
    quarters(-24, 24), quarters(-24, 24), st.just(NEVER)
)  # some are forbidden, never all
row_of_logits = st.lists(logit, min_size=V, max_size=V).filter(lambda row: max(row) > NEVER)
token_history = st.builds(
    TokenHistory, st.lists(ids, max_size=5).map(tuple), st.lists(ids, max_size=5).map(tuple)
)
each = pytest.mark.parametrize("name", FILTERS)
some = settings(max_examples=settings().max_examples // 3)  # an example is several rows


def configs() -> st.SearchStrategy[SampleConfig]:
    """Any settings together; each filter is off in half of them."""
    return st.builds(
        SampleConfig,
        **{
            name: st.one_of(st.just(FILTERS[name].disabled_value), o.values)
            for name, o in ORACLES.items()
        },
    )


def test_every_filter_has_an_oracle_a_field_and_a_default_that_is_off():
    assert ORACLES.keys() == FILTERS.keys() == set(SampleConfig.__struct_fields__)
    assert sampling.prepare(SampleConfig(temperature=1.0)) == ((), False)


@each
@some
@given(data=st.data())
def test_a_filter_does_to_each_row_what_its_definition_says(name, data):
    rows = data.draw(
        st.lists(
            st.tuples(row_of_logits, ORACLES[name].values, token_history), min_size=1, max_size=3
        )
    )
    expected = torch.tensor(
        [ORACLES[name].row(row, value, history) for row, value, history in rows]
    )
    configs = [SampleConfig(**{"temperature": 1.0, name: value}) for _, value, _ in rows]
    batch = [sampling.prepare(config) for config in configs]
    logits = torch.tensor([row for row, _, _ in rows])
    before = logits.clone()
    filtered = sampling.chain(batch, [history for _, _, history in rows])(logits)
    assert torch.equal(logits, before), "the argument was changed"
    assert torch.equal(filtered == NEVER, expected == NEVER), (filtered, expected)
    torch.testing.assert_close(filtered, expected, rtol=1e-5, atol=1e-4)


@some
@given(data=st.data())
def test_a_row_is_bitwise_the_same_alone_and_in_any_batch(data):
    rows = data.draw(st.lists(st.tuples(configs(), token_history), min_size=2, max_size=4))
    # Wider than what is presorted, and of different shapes: some rows need the full sort.
    width = 3000
    logits = torch.stack(
        [
            random.normal(data.draw(st.integers(0, 9)), (width,), data.draw(st.floats(0, 4)))
            for _ in rows
        ]
    )
    logits = logits.bfloat16().float()
    histories = [history for _, history in rows]
    batch = [sampling.prepare(config) for config, _ in rows]
    together = sampling.chain(batch, histories)(logits)
    u = torch.tensor(
        data.draw(
            st.lists(
                st.floats(0, 1, exclude_max=True, width=32), min_size=len(rows), max_size=len(rows)
            )
        )
    )
    chosen = sampling.choose(together, u)
    assert torch.equal(sampling.draw(batch, histories, logits, u), chosen)
    for i, (config, history) in enumerate(rows):
        alone = sampling.chain([sampling.prepare(config)], [history])(logits[i : i + 1])
        assert torch.equal(alone[0], together[i]), config
        assert sampling.choose(alone, u[i : i + 1]).item() == chosen[i].item()
        assert together[i, chosen[i]] > NEVER


def batch_of(values: list[Any]) -> Any:
    """The values of several rows as a filter receives them."""
    is_number = isinstance(values[0], int | float)
    return torch.tensor(values) if is_number else tuple(values)


@each
@some
@given(data=st.data())
def test_a_filter_of_a_batch_is_bitwise_that_filter_of_each_row(name, data):
    rows = data.draw(
        st.lists(st.tuples(ORACLES[name].values, token_history), min_size=2, max_size=4)
    )
    values = [value for value, _ in rows]
    histories = [each for _, each in rows]
    # Wider than what is presorted, and of different shapes: some rows need the full sort.
    spreads = data.draw(st.lists(st.floats(0, 4), min_size=len(rows), max_size=len(rows)))
    logits = torch.stack([random.normal(i, (3000,), spread) for i, spread in enumerate(spreads)])
    apply = FILTERS[name].apply
    together = apply(logits, batch_of(values), histories)
    for i in range(len(rows)):
        alone = apply(logits[i : i + 1], batch_of(values[i : i + 1]), histories[i : i + 1])
        assert torch.equal(alone[0], together[i])


@some
@given(data=st.data())
def test_all_filters_in_a_row_are_the_definitions_one_after_the_other(data):
    config = data.draw(configs())
    history = data.draw(token_history)
    row = data.draw(row_of_logits)
    expected = row
    for name in FILTERS:  # the order is part of the promise; a greedy row has one token left
        value = getattr(config, name)
        if value != FILTERS[name].disabled_value:
            expected = ORACLES[name].row(expected, value, history)
    filtered = sampling.chain([sampling.prepare(config)], [history])(torch.tensor([row]))
    assume(config.temperature or sorted(expected)[-1] > sorted(expected)[-2])
    assert [x > NEVER for x in filtered[0].tolist()] == [x > NEVER for x in expected]


def test_the_order_of_filters():
    assert list(FILTERS) == [
        *("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias", "bad_words"),
        *("temperature", "top_k", "typical_p", "top_p", "min_p"),
    ]


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_the_presorted_tokens_decide_as_the_full_sort_does(name, spread):
    logits = (random.normal(1, (3, 4096), spread)).bfloat16().float()
    for mass in (0.05, 0.5, 0.95):
        filters = sampling.prepare(SampleConfig(temperature=1.0, **{name: mass}))
        filtered = sampling.chain([filters] * 3)(logits)
        for row, out in zip(logits.double(), filtered, strict=True):
            p = row.softmax(-1)
            score = row if name == "top_p" else -(-p.log() + (p * p.log()).sum()).abs()
            num = (
                p[score.sort(descending=True, stable=True).indices].cumsum(-1) < mass - 1e-6
            ).sum().item() + 1
            kept = out > NEVER
            assert abs(int(kept.sum()) - num) <= 1 + num * 1e-4
            assert score[kept].min() >= score[~kept].max() - 1e-6


@pytest.mark.parametrize("name", ["top_p", "typical_p"])
def test_of_equal_presorted_tokens_the_lower_ids_are_kept(name):
    likely = [(7 * i) % 3001 for i in range(100)]
    logits = torch.full((1, 3001), -40.0)
    logits[0, likely] = 0.0
    filters = sampling.prepare(SampleConfig(temperature=1.0, **{name: 0.305}))
    filtered = sampling.chain([filters])(logits)
    assert (filtered[0] > NEVER).nonzero().flatten().tolist() == sorted(likely)[:31]
