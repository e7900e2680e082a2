"""Continuous batching: requests join and leave at any step, long prompts are read in chunks, known prefixes once.

Invariant: the i-th new token of a request is a function of the request and i: bit for bit, whatever else is decoded
beside it, whenever it joined, and whether its prefix was known.

How that holds. A prompt is read alone, in chunks counted from its beginning, so its numbers see no other row. In a
decoding step each kernel must treat a row the same among any others. Measured with PyTorch 2.13 on x86, 1 and 2
threads: oneDNN's bfloat16 products do from 3 rows on, MKL's float32 products do where rows come in multiples of 4,
matrix-vector kernels (1 row) do not, INT8's do for any number; softmax and weighted sums do where the keys come in
multiples of 16. So rows are padded to multiples of 4 and keys to multiples of 64. On a GPU cuBLAS picks its
kernels by the number of rows: there the law holds up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.types import Apply, Params
from slm_fn.infer import prefix, sample
from slm_fn.infer.filters import Said
from slm_fn.infer.prefix import Prefix
from slm_fn.infer.sample import SampleConfig, Settings
from slm_fn.nn import cache as kv
from slm_fn.nn import ops
from slm_fn.nn.cache import KVCache, Slots

InitCache = Callable[[Params, int, int], KVCache]
Decode = Callable[[Slots, dict[str, Tensor]], tuple[Slots, dict[str, Tensor]]]
Finish = Literal["stop", "length"]

ROWS, TOKENS, KEYS = 4, 16, 64
"""Rows of a step, tokens of a prompt's piece and keys are padded to multiples of these: see above, and so that whoever
compiles or records a step sees few shapes."""


class ContextOverflow(ValueError):
    """A prompt that leaves no room for an answer."""


class Full(RuntimeError):
    """No slot is free: admit the request when another has ended."""


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of an engine.

    `size` is the context of a row, `chunk` how many tokens of prompts are read at most in a step and how long the
    pieces are that a known prefix is made of, `prefix_tokens` how many tokens of known prefixes are kept.
    """

    max_batch: int = 8
    size: int = 1024
    chunk: int = 256
    prefix_tokens: int = 4096


DEFAULTS = EngineConfig()


class Request(NamedTuple):
    """What one row is to do.

    `logprobs` is how many alternatives are told per new token (None: not even its own logarithm); `prompt_logprobs`
    asks for the same of the prompt.
    """

    prompt: tuple[int, ...]
    sampling: SampleConfig = SampleConfig()
    seed: int = 0
    max_tokens: int = 16
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: bool = False
    constraint: Any = None


class Logprob(NamedTuple):
    """The logarithm of a token's probability, and the likeliest ids with theirs, likeliest first."""

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


class Prompt(NamedTuple):
    """What is told of a prompt with its first new token; `logprobs` (if asked for) start at its second token."""

    cached_tokens: int
    logprobs: tuple[Logprob, ...] = ()


class Token(NamedTuple):
    """A new token of the request `key`; `id` is None where none was asked for (`max_tokens=0`)."""

    key: int
    id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None
    prompt: Prompt | None = None


class Row(NamedTuple):
    """A request under way: which slot it has (-1: none yet) and how much of it is filled; what it has said."""

    key: int
    request: Request
    slot: int = -1
    names: tuple[bytes, ...] = ()
    filled: int = 0
    reply: tuple[int, ...] = ()
    turn: int = 0
    cached: int = 0
    told: tuple[Logprob, ...] = ()
    matcher: Any = None


class Engine(NamedTuple):
    """What does not change while requests come and go; see `make`."""

    apply: Apply
    init_cache: InitCache
    params: Params
    config: EngineConfig
    decode: Decode
    rows: int


class EngineState(NamedTuple):
    """The requests under way, the slots they write to, and the prefixes that are known.

    Rows that write have the first slots, without gaps; rows that still read their prompt have slots behind those and
    behind their padding. The slots are written over: once a function was handed a state, only the one that it
    returned is good.
    """

    slots: Slots
    rows: tuple[Row, ...]
    known: Prefix
    turn: int = 0
    settings: tuple[tuple[SampleConfig, ...], Settings | None] = ((), None)


def make(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    config: EngineConfig = DEFAULTS,
    lift: Callable[[Decode], Decode] = lambda decode: decode,
    rows: int = ROWS,
) -> Engine:
    """An engine for a model.

    Args:
        apply: may have `lift_block` bound, to compile the block.
        lift: wraps the decoding step `(slots, batch) -> (slots, {"logits"})`, which sees few shapes: `jit.capture`
            records it as a graph where the device replays graphs (no GPU has run this).
        rows: decoding steps are padded to multiples of it; 1 will do where all products treat rows alike (INT8).

    Raises:
        ValueError: a limit is not positive.
    """
    for name in ("max_batch", "size", "chunk"):
        if getattr(config, name) < 1:
            raise ValueError(f"engine: {name} must be at least 1, got {getattr(config, name)}")

    def decode(slots: Slots, batch: dict[str, Tensor]) -> tuple[Slots, dict[str, Tensor]]:
        tokens, lengths, keys = batch["tokens"], batch["lengths"], batch["keys"]
        past = kv.view(slots, len(tokens), len(keys))._replace(length=lengths)
        logits, _ = apply(params, tokens[:, None], past)
        return slots, {"logits": logits[:, -1].float()}

    return Engine(apply, init_cache, params, config, lift(decode), rows)


def init(engine: Engine, room: int | None = None) -> EngineState:
    """An engine's state without requests.

    Args:
        room: how many tokens a slot holds, if no request will be as long as the context.
    """
    config = engine.config
    size = min(config.size, room or config.size)
    like = engine.init_cache(engine.params, 1, 1).k
    shape = (like.shape[0], config.max_batch + engine.rows - 1, _up(size, KEYS), *like.shape[3:])
    k, v = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2))
    slots = Slots(k, v, torch.zeros(shape[1], dtype=torch.long, device=like.device))
    return EngineState(slots, (), Prefix(config.prefix_tokens // config.chunk))


def _up(count: int, step: int) -> int:
    return -(-count // step) * step


def check_prompt(num_prompt: int, size: int, max_tokens: int) -> None:
    """Refuse a prompt that leaves no room, before anything is computed.

    Raises:
        ContextOverflow: in the words that OpenAI's clients know.
    """
    if num_prompt >= size:
        raise ContextOverflow(
            f"This model's maximum context length is {size} tokens. However, you requested "
            f"{num_prompt + max_tokens} tokens ({num_prompt} in the messages, {max_tokens} in the completion). "
            "Please shorten the prompt."
        )


def check_request(request: Request, size: int) -> None:
    """Refuse what cannot be done in a context of `size`, before anything is computed.

    Raises:
        ContextOverflow: the prompt leaves no room.
        ValueError: an empty prompt, or a setting out of its range.
    """
    if not request.prompt:
        raise ValueError("a prompt needs at least one token")
    if request.max_tokens < 0:
        raise ValueError(f"max_tokens must be at least 0, got {request.max_tokens}")
    check_prompt(len(request.prompt), size, request.max_tokens)
    sample.check(request.sampling)


def admit(engine: Engine, state: EngineState, key: int, request: Request) -> EngineState:
    """The state with one request more, which `step` then works on.

    Raises:
        Full: every slot is taken.
        ContextOverflow: the prompt leaves no room.
        ValueError: the key is taken, the prompt is empty, or a setting is out of its range.
    """
    check_request(request, engine.config.size)
    if any(row.key == key for row in state.rows):
        raise ValueError(f"engine: a request with key {key} is under way")
    if len(state.rows) >= engine.config.max_batch:
        raise Full(f"all {engine.config.max_batch} rows are taken")
    matcher = request.constraint.start() if request.constraint is not None else None
    named = prefix.names(request.prompt, engine.config.chunk) if state.known.room else ()
    row = Row(key, request, names=named, turn=state.turn, matcher=matcher)
    return state._replace(rows=(*state.rows, row), turn=state.turn + 1)


@torch.inference_mode()
def evict(engine: Engine, state: EngineState, key: int) -> EngineState:
    """The state without a request, whose slot is free at once; unchanged if it is not there (any more)."""
    rows = tuple(row for row in state.rows if row.key != key)
    return state if len(rows) == len(state.rows) else _settled(engine, state._replace(rows=rows))


@torch.inference_mode()
def step(engine: Engine, state: EngineState) -> tuple[EngineState, list[Token]]:
    """Read at most `chunk` tokens of waiting prompts, and make one token for every row that is ready.

    Rows whose prompt ends here make their first token in this very step. Without rows nothing happens.
    """
    ready = sorted((row for row in state.rows if row.reply), key=lambda row: row.slot)
    state, fresh = read(engine, state)
    parts = [logits for _, logits in fresh]
    if ready:
        parts.insert(0, _decode(engine, state.slots, ready))
    if not parts:
        return state, []
    rows = [*(row._replace(filled=row.filled + 1) for row in ready), *(row for row, _ in fresh)]
    return _sampled(engine, state, rows, torch.cat(parts))


def _decode(engine: Engine, slots: Slots, ready: Sequence[Row]) -> Tensor:
    """The logits behind the last token of the rows that write, padded to few shapes."""
    num_rows, num_keys = _up(len(ready), engine.rows), _up(max(row.filled for row in ready) + 1, KEYS)
    told = [(row.reply[-1], row.filled) for row in ready] + [(0, 0)] * (num_rows - len(ready))
    tokens, lengths = torch.tensor(told, device=slots.k.device).unbind(1)
    batch = {"tokens": tokens, "lengths": lengths, "keys": torch.empty(num_keys, device=tokens.device)}
    return engine.decode(slots, batch)[1]["logits"][: len(ready)].cpu()


def read(engine: Engine, state: EngineState) -> tuple[EngineState, list[tuple[Row, Tensor]]]:
    """Read pieces of prompts, each row in its turn; returns the rows whose prompt ended, with their logits."""
    budget = engine.config.chunk
    ended: list[tuple[Row, Tensor]] = []
    while waiting := [row for row in state.rows if row.filled < len(row.request.prompt)]:
        next_key = min(waiting, key=lambda row: row.turn).key
        state, row = _recalled(engine, _seated(state, next_key), next_key)
        num = min(engine.config.chunk, len(row.request.prompt) - row.filled)
        if num > budget:
            return state, ended
        budget -= num
        logits = _read(engine, state.slots, row, num)
        known = state.known
        if num == engine.config.chunk and row.names:
            name = row.names[row.filled // num]
            known = prefix.keep(known, name, *_part(state.slots, row.slot, row.filled, num))
        row = row._replace(filled=row.filled + num, turn=state.turn, told=(*row.told, *_prompt_told(row, logits)))
        state = _with(state._replace(known=known, turn=state.turn + 1), [row])
        if row.filled == len(row.request.prompt):
            ended.append((row, logits[-1:]))
    return state, ended


def _with(state: EngineState, rows: Sequence[Row]) -> EngineState:
    """The state with some rows as they are now."""
    new = {row.key: row for row in rows}
    return state._replace(rows=tuple(new.get(row.key, row) for row in state.rows))


def _row(state: EngineState, key: int) -> Row:
    return next(row for row in state.rows if row.key == key)


def _seated(state: EngineState, key: int) -> EngineState:
    """The state with a slot for a row: the last that is free, away from those that write."""
    row = _row(state, key)
    if row.slot >= 0:
        return state
    taken = {row.slot for row in state.rows}
    return _with(state, [row._replace(slot=max(set(range(state.slots.k.shape[1])) - taken))])


def _recalled(engine: Engine, state: EngineState, key: int) -> tuple[EngineState, Row]:
    """The state with a row's slot filled by what is known of its prompt. The last token is always read: for logits."""
    row, known, num = _row(state, key), state.known, engine.config.chunk
    while row.names and row.filled + num < len(row.request.prompt) and not row.request.prompt_logprobs:
        known, found = prefix.find(known, row.names[row.filled // num])
        if found is None:
            break
        for into, chunk in zip(_part(state.slots, row.slot, row.filled, num), found, strict=True):
            into.copy_(chunk)
        row = row._replace(filled=row.filled + num, cached=row.cached + num)
    return _with(state._replace(known=known), [row]), row


def _part(slots: Slots, place: int, start: int, num: int) -> tuple[Tensor, Tensor]:
    return slots.k[:, place, start : start + num], slots.v[:, place, start : start + num]


def _read(engine: Engine, slots: Slots, row: Row, num: int) -> Tensor:
    """Read the next `num` tokens of a row's prompt; logits of all (asked for), of the last one, or of none."""
    start, device = row.filled, slots.k.device
    padded = min(_up(num, TOKENS), engine.config.size - start)
    ids = [*row.request.prompt[start : start + num], *[0] * (padded - num)]
    num_keys = _up(start + padded, KEYS)
    past = Slots(
        slots.k[:, row.slot : row.slot + 1, :num_keys],
        slots.v[:, row.slot : row.slot + 1, :num_keys],
        torch.tensor([start], device=device),
    )
    last = start + num == len(row.request.prompt)
    first = 0 if row.request.prompt_logprobs else num - 1 if last else num

    def head(weight: Any, hidden: Tensor, **caps: float) -> Tensor:
        wanted = hidden[:, first:num]
        return ops.logits(weight, wanted, **caps) if first < num else wanted

    logits, _ = engine.apply(engine.params, torch.tensor([ids], device=device), past, head=head)
    return logits[0].float().cpu()


def _prompt_told(row: Row, logits: Tensor) -> tuple[Logprob, ...]:
    if not row.request.prompt_logprobs:
        return ()
    following = row.request.prompt[row.filled + 1 : row.filled + 1 + len(logits)]
    return tuple(_told(logits[: len(following)], following, row.request.logprobs or 0))


def _told(logits: Tensor, ids: Sequence[int], num_top: int) -> list[Logprob]:
    if not len(ids):
        return []
    found = sample.logprobs(logits, torch.tensor(ids), num_top)
    tops = zip(found.ids.tolist(), found.values.tolist(), strict=True)
    return [Logprob(own, tuple(zip(*top, strict=True))) for own, top in zip(found.chosen.tolist(), tops, strict=True)]


def _sampled(
    engine: Engine, state: EngineState, rows: Sequence[Row], logits: Tensor
) -> tuple[EngineState, list[Token]]:
    """Choose a token for each of some rows, tell it, and let go the rows that ended."""
    settings, chosen = _chosen(state, rows, logits)
    after, tokens = [], []
    for row, raw, token in zip(rows, logits.split(1), chosen, strict=True):
        request, prompt = row.request, None if row.reply else Prompt(row.cached, row.told)
        if not request.max_tokens:
            tokens.append(Token(row.key, None, finish="length", prompt=prompt))
            continue
        told = Logprob(None) if request.logprobs is None else _told(raw, [token], request.logprobs)[0]
        row = row._replace(reply=(*row.reply, token), told=())
        tokens.append(Token(row.key, token, *told, _finish(engine, row), prompt))
        after.append(row)
    gone = {token.key for token in tokens if token.finish}
    state = _with(state, after)
    kept = tuple(row for row in state.rows if row.key not in gone)
    return _settled(engine, state._replace(rows=kept, settings=settings)), tokens


def _chosen(state: EngineState, rows: Sequence[Row], logits: Tensor) -> tuple[tuple[Any, ...], list[int]]:
    """The next token of each row; and the settings of all, which are stacked anew when others sample."""
    configs = tuple(row.request.sampling for row in rows)
    known, settings = state.settings
    if settings is None or configs != known:
        settings = sample.stack(configs)
    said = [Said(row.request.prompt, row.reply) for row in rows]
    u = [random.uniform(random.fold_in(row.request.seed, len(row.reply)), (1,)) for row in rows]
    return (configs, settings), sample.choose(sample.chain(settings, said)(logits), torch.cat(u)).tolist()


def _finish(engine: Engine, row: Row) -> Finish | None:
    if row.reply[-1] in row.request.stop_ids:
        return "stop"
    full = len(row.request.prompt) + len(row.reply) > engine.config.size - 1
    return "length" if full or len(row.reply) == row.request.max_tokens else None


def _settled(engine: Engine, state: EngineState) -> EngineState:
    """The state with its rows where they belong: those that write in front; those that read behind their padding."""
    writing = [row for row in state.rows if row.reply]
    reading = [row for row in state.rows if not row.reply and row.slot >= 0]
    front, num_slots = len(writing), state.slots.k.shape[1]
    moves = _moves(writing, range(front)) + _moves(reading, range(_up(front, engine.rows), num_slots))
    # Read before written: one may move to where another leaves.
    parts = [[x.clone() for x in _part(state.slots, row.slot, 0, row.filled)] for row, _ in moves]
    for (row, slot), held in zip(moves, parts, strict=True):
        for into, part in zip(_part(state.slots, slot, 0, row.filled), held, strict=True):
            into.copy_(part)
    return _with(state, [row._replace(slot=slot) for row, slot in moves]) if moves else state


def _moves(rows: Sequence[Row], allowed: range) -> list[tuple[Row, int]]:
    """Who of some rows has to move where, so that all of them have a slot that is allowed."""
    free = sorted(set(allowed) - {row.slot for row in rows})
    return [(row, free.pop()) for row in rows if row.slot not in allowed]
