"""Continuous batching: requests join and leave at any step, long prompts are read in chunks, known prefixes once.

Invariant: the i-th new token of a request is a function of the request and i: bit for bit, whatever else is decoded
beside it, whenever it joined, and whether its prefix was known.

How that holds. A prompt is read alone, in pieces that are cut by the request, so its numbers see no other row; a known
piece is a copy of what reading made. In a decoding step each kernel must treat a row the same among any others.
The native step (`fast`) does. Else, measured with PyTorch 2.13 on x86, 1 and 2 threads: MKL's float32 products do
where rows come in multiples of 4; oneDNN's bfloat16 products do from 3 rows on; INT8's do for any number up to
`device.FEW_ROWS`; softmax and weighted sums over keys do where keys come in multiples of 16. So rows are padded to
multiples of 4 (of 1 where the step is native) and keys to multiples of 64. With other kernels, as on a GPU, whose
products are chosen by the number of rows, the law holds up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from slm_fn.core import random
from slm_fn.core.types import Apply, Params
from slm_fn.infer import constrain, fast, prefix, sample
from slm_fn.infer import state as states
from slm_fn.infer.filters import Said
from slm_fn.infer.prefix import Prefix
from slm_fn.infer.request import Finish, Logprob, Prompt, Request, Token, check_request, tell
from slm_fn.infer.state import EngineState, Row, up
from slm_fn.lift.quant import Quant
from slm_fn.nn import cache as kv
from slm_fn.nn import ops
from slm_fn.nn.cache import KVCache, Slots

InitCache = Callable[[Params, int, int], KVCache]
Decode = Callable[[Slots, dict[str, Tensor]], tuple[Slots, dict[str, Tensor]]]

ROWS, TOKENS, KEYS = 4, 16, 64
"""Rows of a step, tokens of a prompt's piece and keys are padded to multiples of these: see above, and so that whoever
compiles or records a step sees few shapes."""


class Full(RuntimeError):
    """No slot is free: admit the request when another has ended."""


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of an engine.

    `size` is the context of a row, `chunk` how many tokens of prompts are read at most in a step, and in a piece;
    `prefix_tokens` how many tokens of known prefixes are kept.
    """

    max_batch: int = 8
    size: int = 1024
    chunk: int = 256
    prefix_tokens: int = 4096


DEFAULTS = EngineConfig()


class Engine(NamedTuple):
    """What does not change while requests come and go; see `make`."""

    apply: Apply
    init_cache: InitCache
    params: Params
    config: EngineConfig
    decode: Decode
    rows: int
    vocab_size: int | None


def make(
    apply: Apply,
    init_cache: InitCache,
    params: Params,
    config: EngineConfig = DEFAULTS,
    lift: Callable[[Decode], Decode] = lambda decode: decode,
) -> Engine:
    """An engine for a model.

    Args:
        apply: may have `lift_block` bound, to compile the block.
        lift: wraps the decoding step `(slots, batch) -> (slots, {"logits"})`, which sees few shapes: `jit.capture`
            records it as a graph where the device replays graphs (no GPU has run this).

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

    rows, embed = 1 if fast.rows_are_alike(apply) else ROWS, params.get("embed")
    vocab_size = None if embed is None else (embed.q if isinstance(embed, Quant) else embed).shape[0]
    return Engine(apply, init_cache, params, config, lift(decode), rows, vocab_size)


def init(engine: Engine, room: int | None = None) -> EngineState:
    """An engine's state without requests.

    Args:
        room: how many tokens a slot holds, if no request will be as long as the context.
    """
    config = engine.config
    size = min(config.size, (room or config.size) + TOKENS - 1)  # pieces are padded
    like = engine.init_cache(engine.params, 1, 1).k
    shape = (like.shape[0], config.max_batch + engine.rows - 1, up(size, KEYS), *like.shape[3:])
    k, v = (torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2))
    slots = Slots(k, v, torch.zeros(shape[1], dtype=torch.long, device=like.device))
    return EngineState(slots, (), Prefix(config.prefix_tokens))


def admit(engine: Engine, state: EngineState, key: int, request: Request) -> EngineState:
    """The state with one request more, which `step` then works on.

    Raises:
        Full: every slot is taken.
        ContextOverflow: the prompt leaves no room.
        ValueError: the key is taken, the prompt is empty, or a setting is out of its range.
    """
    check_request(request, engine.config.size, engine.vocab_size)
    if any(row.key == key for row in state.rows):
        raise ValueError(f"engine: a request with key {key} is under way")
    if len(state.rows) >= engine.config.max_batch:
        raise Full(f"all {engine.config.max_batch} rows are taken")
    matcher = request.constraint.start() if request.constraint is not None else None
    pieces = prefix.pieces(request.prompt, engine.config.chunk, request.shared)
    row = Row(key, request, pieces, matcher, state.turn)
    return state._replace(rows=(*state.rows, row), turn=state.turn + 1)


@torch.inference_mode()
def evict(engine: Engine, state: EngineState, key: int) -> EngineState:
    """The state without a request, whose slot is free at once; unchanged if it is not there (any more)."""
    rows = tuple(row for row in state.rows if row.key != key)
    return state if len(rows) == len(state.rows) else states.settled(state._replace(rows=rows), engine.rows)


@torch.inference_mode()
def step(engine: Engine, state: EngineState) -> tuple[EngineState, list[Token]]:
    """Read at most `chunk` tokens of waiting prompts, and make one token for every row that is ready.

    Rows whose prompt ends here make their first token in this very step. Without rows nothing happens.
    """
    ready = sorted((row for row in state.rows if row.reply), key=lambda row: row.slot)
    state, fresh = read(engine, state)
    parts = [logits for _, logits in fresh]
    if ready:
        slots, logits = _decode(engine, state.slots, ready)
        state, parts = state._replace(slots=slots), [logits, *parts]
    if not parts:
        return state, []
    rows = [*(row._replace(filled=row.filled + 1) for row in ready), *(row for row, _ in fresh)]
    return _sampled(engine, state, rows, torch.cat(parts))


def _decode(engine: Engine, slots: Slots, ready: Sequence[Row]) -> tuple[Slots, Tensor]:
    """The logits behind the last token of the rows that write, padded to few shapes."""
    num_rows, num_keys = up(len(ready), engine.rows), up(max(row.filled for row in ready) + 1, KEYS)
    told = [(row.reply[-1], row.filled) for row in ready] + [(0, 0)] * (num_rows - len(ready))
    tokens, lengths = torch.tensor(told, device=slots.k.device).unbind(1)
    batch = {"tokens": tokens, "lengths": lengths, "keys": torch.empty(num_keys, device=tokens.device)}
    slots, out = engine.decode(slots, batch)
    return slots, out["logits"][: len(ready)].cpu()


def read(engine: Engine, state: EngineState) -> tuple[EngineState, list[tuple[Row, Tensor]]]:
    """Read pieces of prompts, each row in its turn; returns the rows whose prompt ended, with their logits."""
    budget = engine.config.chunk
    ended: list[tuple[Row, Tensor]] = []
    while waiting := [row for row in state.rows if row.filled < len(row.request.prompt)]:
        next_key = min(waiting, key=lambda row: row.turn).key
        state, row = _recalled(states.seated(state, next_key), next_key)
        piece = next((piece for piece in row.pieces if piece.end > row.filled), None)
        num = (len(row.request.prompt) if piece is None else piece.end) - row.filled
        if num > budget:
            return state, ended
        budget -= num
        logits, known = _read(engine, state.slots, row, num), state.known
        if piece is not None:
            known = prefix.keep(known, piece.name, *states.part(state.slots, row.slot, row.filled, num))
        row = row._replace(filled=row.filled + num, turn=state.turn, told=(*row.told, *_prompt_told(row, logits)))
        state = states.update(state._replace(known=known, turn=state.turn + 1), [row])
        if row.filled == len(row.request.prompt):
            ended.append((row, logits[-1:]))
    return state, ended


def _recalled(state: EngineState, key: int) -> tuple[EngineState, Row]:
    """The state with a row's slot filled by what is known of its prompt. The last token is always read: for logits."""
    row, known = states.row_of(state, key), state.known
    for piece in row.pieces:
        if piece.end <= row.filled:
            continue
        if piece.end == len(row.request.prompt) or row.request.prompt_logprobs:
            break
        known, found = prefix.find(known, piece.name)
        if found is None:
            break
        states.put(state.slots, row.slot, row.filled, found)
        row = row._replace(filled=piece.end, cached=row.cached + piece.end - row.filled)
    return states.update(state._replace(known=known), [row]), row


def _read(engine: Engine, slots: Slots, row: Row, num: int) -> Tensor:
    """Read the next `num` tokens of a row's prompt; logits of all (asked for), of the last one, or of none."""
    start, device = row.filled, slots.k.device
    padded = min(up(num, TOKENS), engine.config.size - start)
    ids = [*row.request.prompt[start : start + num], *[0] * (padded - num)]
    num_keys = up(start + padded, KEYS)
    past = Slots(
        slots.k[:, row.slot : row.slot + 1, :num_keys],
        slots.v[:, row.slot : row.slot + 1, :num_keys],
        torch.tensor([start], device=device),
    )
    last = start + num == len(row.request.prompt)
    first = 0 if row.request.prompt_logprobs else num - 1 if last else num

    def head(weight: Any, hidden: Tensor, **caps: float) -> Tensor:
        wanted = hidden[0, first:num]  # of a slice in three dimensions PyTorch would make a copy of the whole weight
        return ops.logits(weight, wanted, **caps) if first < num else wanted

    logits, _ = engine.apply(engine.params, torch.tensor([ids], device=device), past, head=head)
    return logits.float().cpu()


def _prompt_told(row: Row, logits: Tensor) -> tuple[Logprob, ...]:
    if not row.request.prompt_logprobs:
        return ()
    following = row.request.prompt[row.filled + 1 : row.filled + 1 + len(logits)]
    return tell(logits[: len(following)], following, row.request.logprobs or 0)


def _sampled(
    engine: Engine, state: EngineState, rows: Sequence[Row], logits: Tensor
) -> tuple[EngineState, list[Token]]:
    """Choose a token for each of some rows, tell it, and let go the rows that ended."""
    settings, chosen = _chosen(state, rows, logits)
    told = _all_told(rows, logits, chosen)
    after, tokens = [], []
    for row, token in zip(rows, chosen, strict=True):
        prompt = None if row.reply else Prompt(row.cached, row.told)
        if not row.request.max_tokens:
            tokens.append(Token(row.key, None, finish="length", prompt=prompt))
            continue
        matcher = None if row.matcher is None else constrain.advance(row.matcher, token)
        row = row._replace(reply=(*row.reply, token), told=(), matcher=matcher)
        tokens.append(Token(row.key, token, *told.get(row.key, Logprob(None)), _finish(engine, row), prompt))
        after.append(row)
    gone = {token.key for token in tokens if token.finish}
    state = states.update(state, after)
    kept = tuple(row for row in state.rows if row.key not in gone)
    return states.settled(state._replace(rows=kept, settings=settings), engine.rows), tokens


def _all_told(rows: Sequence[Row], logits: Tensor, chosen: Sequence[int]) -> dict[int, Logprob]:
    """What is told of the new tokens of those rows that asked."""
    asked = [i for i, row in enumerate(rows) if row.request.logprobs is not None]
    if not asked:
        return {}
    wanted = {rows[i].key: rows[i].request.logprobs or 0 for i in asked}
    told = tell(logits[asked], [chosen[i] for i in asked], max(wanted.values()))
    return {key: one._replace(top=one.top[:num]) for (key, num), one in zip(wanted.items(), told, strict=True)}


def _chosen(state: EngineState, rows: Sequence[Row], logits: Tensor) -> tuple[tuple[Any, ...], list[int]]:
    """The next token of each row; and the settings of all, which are stacked anew when others sample."""
    configs = tuple(row.request.sampling for row in rows)
    known, settings = state.settings
    if settings is None or configs != known:
        settings = sample.stack(configs)
    said = [Said(row.request.prompt, row.reply) for row in rows]
    allowed = constrain.link([row.matcher for row in rows])(logits)
    u = [random.uniform(random.fold_in(row.request.seed, len(row.reply)), (1,)) for row in rows]
    return (configs, settings), sample.draw(settings, said, allowed, torch.cat(u)).tolist()


def _finish(engine: Engine, row: Row) -> Finish | None:
    if row.reply[-1] in row.request.stop_ids:
        # A form that could not go on is no reply that ended.
        return "stop" if row.matcher is None or constrain.complete(row.matcher) else "length"
    full = len(row.request.prompt) + len(row.reply) > engine.config.size - 1
    return "length" if full or len(row.reply) == row.request.max_tokens else None
