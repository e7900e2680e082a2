"""Continuous batching: requests join and leave at any step, long prompts are prefilled in chunks.

Invariant: the i-th new token of a request is a function of the request and i, bit for bit, whatever
else is decoded with it, whenever it joined, and whether its prefix was cached.

How this is achieved. A prompt is prefilled alone, in blocks that depend on the request only, so its
numbers do not depend on other rows; a cached block is a copy of what an earlier prefill computed.
In a decoding step each kernel must treat a row the same whatever the other rows are. The native
step (`native_step`) does. PyTorch's products do not: their kernels are selected by the number of
rows and differ in the order of their sums. So a step is computed in passes whose numbers of rows
give a row the same bits. `make` measures which ones do with the threads of this process
(`batching.batch_sizes`): of MKL's float32 products on AMD all multiples of 4, on Intel few of them.
Softmax and weighted sums over keys do where the number of keys is a multiple of 16; it is padded to
a multiple of 64. On a GPU nothing is measured: one pass has all rows, padded to a multiple of 4,
and the invariant holds up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core import random
from slm_fn.infer import constraints, sampling
from slm_fn.infer.batching import batch_sizes, engine_state, prefix_cache
from slm_fn.infer.batching.engine_state import KEY_MULTIPLE, ActiveSequence, EngineState, round_up
from slm_fn.infer.batching.prefill import PREFILL_MULTIPLE, prefill_chunk
from slm_fn.infer.batching.prefix_cache import PrefixCache
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.filters import TokenHistory
from slm_fn.infer.request import (
    Finish,
    Logprob,
    PromptResult,
    Request,
    Token,
    check_request,
    token_logprobs,
)
from slm_fn.lift.quant import Quant
from slm_fn.nn import cache
from slm_fn.nn.cache import InPlaceKVCache

DecodeStep = Callable[[InPlaceKVCache, dict[str, Tensor]], tuple[InPlaceKVCache, dict[str, Tensor]]]
"""One pass, `(slots, batch) -> (slots, {"logits"})`. The batch has `tokens` and `lengths` of its
rows; the lengths of `keys` and `rows_before` are the numbers of keys and of slots before them."""


class EngineFull(RuntimeError):
    """Raised when every slot is used: the request may be admitted when another one has ended."""


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The limits of an engine.

    Attributes:
        max_batch: the most active sequences.
        context: the most tokens of a sequence.
        prefill_chunk: the most prompt tokens of a step, and of a block of the prefix cache.
        prefix_cache_tokens: the most tokens in the prefix cache.
    """

    max_batch: int = 8
    context: int = 1024
    prefill_chunk: int = 256
    prefix_cache_tokens: int = 4096


DEFAULTS = EngineConfig()


class Engine(NamedTuple):
    """What does not change from step to step; see `make`.

    Attributes:
        decoder: the model.
        config: the limits.
        decode: one decoding pass.
        batch_sizes: the numbers of rows of a pass, ascending.
        vocab_size: of the model, if known.
    """

    decoder: Decoder
    config: EngineConfig
    decode: DecodeStep
    batch_sizes: tuple[int, ...]
    vocab_size: int | None


def _unlifted(decode: DecodeStep) -> DecodeStep:
    return decode


def make(
    decoder: Decoder,
    config: EngineConfig = DEFAULTS,
    lift: Callable[[DecodeStep], DecodeStep] = _unlifted,
) -> Engine:
    """Returns an engine for a model.

    Args:
        decoder: the model.
        config: the limits.
        lift: wraps the decoding step, which sees few shapes: `jit.capture` records it as a graph on
            devices that replay graphs (no GPU has run this).

    Raises:
        ValueError: a limit is not positive.
    """
    for name in ("max_batch", "context", "prefill_chunk"):
        if getattr(config, name) < 1:
            raise ValueError(f"engine: {name} must be at least 1, got {getattr(config, name)}")

    def decode(
        slots: InPlaceKVCache, batch: dict[str, Tensor]
    ) -> tuple[InPlaceKVCache, dict[str, Tensor]]:
        tokens = batch["tokens"]
        first = len(batch["rows_before"])
        view = cache.view(slots, first + len(tokens), len(batch["keys"]))
        past = InPlaceKVCache(view.k[:, first:], view.v[:, first:], batch["lengths"])
        logits, _ = decoder.apply(decoder.params, tokens[:, None], past)
        return slots, {"logits": logits[:, -1].float()}

    return Engine(
        decoder=decoder,
        config=config,
        decode=lift(decode),
        batch_sizes=_batch_sizes(decoder, config),
        vocab_size=_vocab_size(decoder),
    )


def _vocab_size(decoder: Decoder) -> int | None:
    embed = decoder.params.get("embed")
    if embed is None:
        return None
    weight = embed.q if isinstance(embed, Quant) else embed
    return int(weight.shape[0])


@torch.inference_mode()
def _batch_sizes(decoder: Decoder, config: EngineConfig) -> tuple[int, ...]:
    """The numbers of rows of a decoding pass, ascending.

    All numbers of rows can be split into them.
    """
    if decoder.is_batch_invariant:
        return tuple(range(1, config.max_batch + 1))
    example = decoder.init_cache(decoder.params, 1, 1).k
    multiple = batch_sizes.BATCH_MULTIPLE
    if example.device.type != "cpu":
        return tuple(range(multiple, round_up(config.max_batch, multiple) + 1, multiple))
    num_variants = batch_sizes.NUM_VARIANTS
    shape = (example.shape[0], num_variants, KEY_MULTIPLE, *example.shape[3:])
    k = random.normal(0, shape).to(example.dtype)
    v = random.normal(1, shape).to(example.dtype)
    max_length = min(config.context, KEY_MULTIPLE) - 1
    lengths = torch.arange(1, 1 + num_variants) * max_length // num_variants

    def logits_of(variants: Int[Tensor, " N"]) -> Float[Tensor, "N V"]:
        past = InPlaceKVCache(k[:, variants], v[:, variants], lengths[variants])
        tokens = torch.zeros(len(variants), 1, dtype=torch.long)
        logits: Tensor
        logits, _ = decoder.apply(decoder.params, tokens, past)
        return logits[:, -1]

    return batch_sizes.measure(logits_of, config.max_batch)


def init(engine: Engine, max_length: int | None = None) -> EngineState:
    """Returns the state of an engine without requests.

    Args:
        engine: for which model and limits.
        max_length: tokens of the longest sequence, if it will be shorter than the context.
    """
    config = engine.config
    # The last prefill of a prompt may be padded beyond it.
    num_positions = min(config.context, (max_length or config.context) + PREFILL_MULTIPLE - 1)
    num_slots = batch_sizes.num_slots(engine.batch_sizes, config.max_batch)
    example = engine.decoder.init_cache(engine.decoder.params, 1, 1).k
    shape = (
        example.shape[0],
        num_slots,
        round_up(num_positions, KEY_MULTIPLE),
        *example.shape[3:],
    )
    slots = InPlaceKVCache(
        k=torch.zeros(shape, dtype=example.dtype, device=example.device),
        v=torch.zeros(shape, dtype=example.dtype, device=example.device),
        length=torch.zeros(num_slots, dtype=torch.long, device=example.device),
    )
    return EngineState(slots, (), PrefixCache(config.prefix_cache_tokens))


def admit(
    engine: Engine,
    state: EngineState,
    key: int,
    request: Request,
) -> EngineState:
    """Returns the state with one more request, which `step` then computes.

    Args:
        engine: the engine.
        state: the state before.
        key: identifies the request's tokens; no active request may have it.
        request: what to generate.

    Raises:
        EngineFull: every slot is used.
        ContextOverflow: the prompt leaves no room for a reply.
        ValueError: the key is in use, the prompt is empty, or a setting is out of range.
    """
    config = engine.config
    check_request(request, config.context, engine.vocab_size)
    if any(sequence.key == key for sequence in state.sequences):
        raise ValueError(f"engine: a request with key {key} is active")
    if len(state.sequences) >= config.max_batch:
        raise EngineFull(f"all {config.max_batch} slots are used")
    sequence = ActiveSequence(
        key=key,
        request=request,
        filters=sampling.prepare(request.sampling),
        blocks=prefix_cache.split_blocks(request.prompt, config.prefill_chunk, request.num_shared),
        matcher=None if request.constraint is None else request.constraint.start(),
        last_prefill=state.clock,
    )
    return state._replace(sequences=(*state.sequences, sequence), clock=state.clock + 1)


@torch.inference_mode()
def evict(
    engine: Engine,
    state: EngineState,
    key: int,
) -> EngineState:
    """Returns the state without a request, whose slot is free at once.

    It is unchanged if no such request is active.
    """
    sequences = tuple(sequence for sequence in state.sequences if sequence.key != key)
    if len(sequences) == len(state.sequences):
        return state
    return engine_state.compact_slots(state._replace(sequences=sequences), engine.batch_sizes)


@torch.inference_mode()
def step(engine: Engine, state: EngineState) -> tuple[EngineState, list[Token]]:
    """Prefills at most one chunk of prompts, and generates a token for each sequence that is ready.

    A sequence whose prompt is complete within this step gets its first token in this step. Without
    requests nothing happens.

    Args:
        engine: the engine.
        state: the state before, which must not be used afterwards.

    Returns:
        The next state, and the new tokens.
    """
    decoding = [sequence for sequence in state.sequences if sequence.reply]
    decoding.sort(key=lambda sequence: sequence.slot)
    config = engine.config
    state, prefilled = prefill_chunk(engine.decoder, state, config.prefill_chunk, config.context)
    ready = [sequence for sequence, _ in prefilled]
    logits = [row for _, row in prefilled]
    if decoding:
        slots, decoded = _decode(engine, state.slots, decoding)
        state = state._replace(slots=slots)
        advanced = [each._replace(num_filled=each.num_filled + 1) for each in decoding]
        ready = advanced + ready
        logits = [decoded, *logits]
    if not ready:
        return state, []
    return _sample(engine, state, ready, torch.cat(logits))


def _decode(
    engine: Engine,
    slots: InPlaceKVCache,
    decoding: Sequence[ActiveSequence],
) -> tuple[InPlaceKVCache, Float[Tensor, "B V"]]:
    """The logits after the last token of decoding sequences, in passes of few shapes."""
    device = slots.k.device
    num_keys = max(sequence.num_filled for sequence in decoding) + 1
    keys = torch.empty(round_up(num_keys, KEY_MULTIPLE), device=device)
    logits: list[Tensor] = []
    first = 0
    for size in batch_sizes.split(engine.batch_sizes, len(decoding)):
        rows = decoding[first : first + size]
        inputs = [(sequence.reply[-1], sequence.num_filled) for sequence in rows]
        inputs += [(0, 0)] * (size - len(rows))
        tokens, lengths = torch.tensor(inputs, device=device).unbind(1)
        batch = {
            "tokens": tokens,
            "lengths": lengths,
            "keys": keys,
            "rows_before": torch.empty(first, device=device),
        }
        slots, output = engine.decode(slots, batch)
        logits.append(output["logits"][: len(rows)].cpu())
        first += size
    return slots, torch.cat(logits)


def _sample(
    engine: Engine,
    state: EngineState,
    ready: Sequence[ActiveSequence],
    logits: Float[Tensor, "B V"],
) -> tuple[EngineState, list[Token]]:
    """Chooses a token for each sequence, and removes the sequences that ended."""
    chosen = _choose(ready, logits)
    logprobs = _requested_logprobs(ready, logits, chosen)
    changed = []
    tokens = []
    for sequence, token_id in zip(ready, chosen, strict=True):
        prompt = None
        if not sequence.reply:
            prompt = PromptResult(sequence.num_cached, sequence.prompt_logprobs)
        if sequence.request.max_tokens == 0:
            tokens.append(Token(sequence.key, None, finish="length", prompt=prompt))
            continue
        sequence = _append(sequence, token_id)
        changed.append(sequence)
        logprob, top = logprobs.get(sequence.key, Logprob(None))
        finish = _finish(engine, sequence)
        tokens.append(Token(sequence.key, token_id, logprob, top, finish, prompt))
    ended = {token.key for token in tokens if token.finish}
    state = engine_state.replace_sequences(state, changed)
    remaining = tuple(each for each in state.sequences if each.key not in ended)
    state = state._replace(sequences=remaining)
    return engine_state.compact_slots(state, engine.batch_sizes), tokens


def _append(sequence: ActiveSequence, token: int) -> ActiveSequence:
    matcher = sequence.matcher
    if matcher is not None:
        matcher = constraints.advance(matcher, token)
    return sequence._replace(reply=(*sequence.reply, token), prompt_logprobs=(), matcher=matcher)


def _choose(ready: Sequence[ActiveSequence], logits: Float[Tensor, "B V"]) -> list[int]:
    """The next token of each sequence; its random number depends on its seed and index only."""
    histories = []
    uniform = []
    for sequence in ready:
        request = sequence.request
        histories.append(TokenHistory(request.prompt, sequence.reply))
        uniform.append(random.uniform(random.fold_in(request.seed, len(sequence.reply)), (1,)))
    masked = constraints.mask_logits([sequence.matcher for sequence in ready], logits)
    filters = [sequence.filters for sequence in ready]
    tokens: list[int] = sampling.draw(filters, histories, masked, torch.cat(uniform)).tolist()
    return tokens


def _requested_logprobs(
    ready: Sequence[ActiveSequence],
    logits: Float[Tensor, "B V"],
    chosen: Sequence[int],
) -> dict[int, Logprob]:
    """The log probabilities of the new tokens by key, of the sequences that requested them."""
    num_top_by_row = {}
    for row, sequence in enumerate(ready):
        if sequence.request.logprobs is not None:
            num_top_by_row[row] = sequence.request.logprobs
    if not num_top_by_row:
        return {}
    rows = list(num_top_by_row)
    max_top = max(num_top_by_row.values())
    logprobs = token_logprobs(logits[rows], [chosen[row] for row in rows], max_top)
    requested = {}
    for row, logprob in zip(rows, logprobs, strict=True):
        top = logprob.top[: num_top_by_row[row]]
        requested[ready[row].key] = logprob._replace(top=top)
    return requested


def _finish(engine: Engine, sequence: ActiveSequence) -> Finish | None:
    request = sequence.request
    num_new = len(sequence.reply)
    if sequence.reply[-1] in request.stop_ids:
        # A constrained text that could not continue did not end by itself.
        matcher = sequence.matcher
        return "stop" if matcher is None or constraints.is_complete(matcher) else "length"
    is_context_full = len(request.prompt) + num_new >= engine.config.context
    return "length" if is_context_full or num_new == request.max_tokens else None
