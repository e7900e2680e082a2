"""The engine's state: requests under way and their slots, those that write in front and those that read behind.

Invariant: rows that write have the first slots, without gaps; no row that reads its prompt has one of those, nor of
the slots that pad a decoding step, which are written to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from slm_fn.infer.constrain import Matcher
from slm_fn.infer.prefix import Piece, Prefix
from slm_fn.infer.request import Logprob, Request
from slm_fn.infer.sample import SampleConfig, Settings
from slm_fn.nn.cache import Slots


class Row(NamedTuple):
    """A request under way."""

    key: int
    request: Request
    pieces: tuple[Piece, ...] = ()  # of its prompt, but the last
    matcher: Matcher | None = None
    turn: int = 0  # when it was last read from
    slot: int = -1  # none yet
    filled: int = 0
    cached: int = 0  # how many of those were known
    told: tuple[Logprob, ...] = ()  # what is to be told of the prompt
    reply: tuple[int, ...] = ()


class EngineState(NamedTuple):
    """The requests under way, the slots they write to, and the prefixes that are known.

    The slots are written over: once a function was handed a state, only the one that it returned is good.
    """

    slots: Slots
    rows: tuple[Row, ...]
    known: Prefix
    turn: int = 0
    settings: tuple[tuple[SampleConfig, ...], Settings | None] = ((), None)


def update(state: EngineState, rows: Sequence[Row]) -> EngineState:
    """The state with some rows as they are now."""
    new = {row.key: row for row in rows}
    return state._replace(rows=tuple(new.get(row.key, row) for row in state.rows))


def row_of(state: EngineState, key: int) -> Row:
    """The row of a request."""
    return next(row for row in state.rows if row.key == key)


def seated(state: EngineState, key: int) -> EngineState:
    """The state with a slot for a row: the last that is free, away from those that write."""
    row = row_of(state, key)
    if row.slot >= 0:
        return state
    taken = {row.slot for row in state.rows}
    return update(state, [row._replace(slot=max(set(range(state.slots.k.shape[1])) - taken))])


def part(
    slots: Slots, slot: int, start: int, num: int
) -> tuple[Float[Tensor, "L num K C"], Float[Tensor, "L num K C"]]:
    """Keys and values of some places of a slot, as a view."""
    return slots.k[:, slot, start : start + num], slots.v[:, slot, start : start + num]


def put(slots: Slots, slot: int, start: int, kept: Sequence[Tensor]) -> None:
    """Write keys and values into a slot."""
    for into, new in zip(part(slots, slot, start, kept[0].shape[1]), kept, strict=True):
        into.copy_(new)


def settled(state: EngineState, multiple: int) -> EngineState:
    """The state with its rows where they belong: those that write in front; those that read behind their padding."""
    writing = [row for row in state.rows if row.reply]
    reading = [row for row in state.rows if not row.reply and row.slot >= 0]
    front, num_slots = len(writing), state.slots.k.shape[1]
    moves = _moves(writing, range(front)) + _moves(reading, range(up(front, multiple), num_slots))
    if not moves:
        return state
    held = [part(state.slots, row.slot, 0, row.filled) for row, _ in moves]
    if len(moves) > 1:  # one may move to where another leaves
        held = [(k.clone(), v.clone()) for k, v in held]
    for (_, slot), kept in zip(moves, held, strict=True):
        put(state.slots, slot, 0, kept)
    return update(state, [row._replace(slot=slot) for row, slot in moves])


def up(count: int, step: int) -> int:
    """The next multiple of `step`.

    Example:
        >>> up(5, 4), up(8, 4)
        (8, 8)
    """
    return -(-count // step) * step


def _moves(rows: Sequence[Row], allowed: range) -> list[tuple[Row, int]]:
    """Who of some rows has to move where, so that all of them have a slot that is allowed."""
    free = sorted(set(allowed) - {row.slot for row in rows})
    return [(row, free.pop()) for row in rows if row.slot not in allowed]
