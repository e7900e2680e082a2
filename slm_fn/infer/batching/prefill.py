"""Prefill: the prompts of waiting sequences, computed in blocks or restored from the prefix cache.

Invariant: a prompt is computed alone, in blocks that depend on its request only, so its keys,
values and logits do not depend on other requests.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.infer.batching import engine_state, prefix_cache
from slm_fn.infer.batching.engine_state import KEY_MULTIPLE, ActiveSequence, EngineState, round_up
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.request import Logprob, token_logprobs
from slm_fn.nn import ops
from slm_fn.nn.cache import InPlaceKVCache

PREFILL_MULTIPLE = 16
"""Tokens of a prefill are padded to a multiple of this: what compiles or records a step then sees
few shapes."""


def prefill_chunk(
    decoder: Decoder,
    state: EngineState,
    chunk: int,
    context: int,
) -> tuple[EngineState, list[tuple[ActiveSequence, Float[Tensor, "1 V"]]]]:
    """Prefills blocks of prompts, at most one chunk of tokens; the longest waiting sequence first.

    Args:
        decoder: the model.
        state: the state before, which must not be used afterwards.
        chunk: the most tokens to compute.
        context: the most tokens of a sequence.

    Returns:
        The next state, and the sequences whose prompt is now complete, with the logits after it.
    """
    num_left = chunk
    completed: list[tuple[ActiveSequence, Tensor]] = []
    while True:
        waiting = [
            sequence
            for sequence in state.sequences
            if sequence.num_filled < len(sequence.request.prompt)
        ]
        if not waiting:
            return state, completed
        key = min(waiting, key=lambda sequence: sequence.last_prefill).key
        state, sequence = restore_prefix(engine_state.assign_slot(state, key), key)
        end = _next_block_end(sequence)
        num_tokens = end - sequence.num_filled
        if num_tokens > num_left:
            return state, completed
        num_left -= num_tokens
        state, sequence, logits = _prefill_block(decoder, state, sequence, end, context)
        if end == len(sequence.request.prompt):
            completed.append((sequence, logits[-1:]))


def _next_block_end(sequence: ActiveSequence) -> int:
    for block in sequence.blocks:
        if block.end > sequence.num_filled:
            return block.end
    return len(sequence.request.prompt)


def _prefill_block(
    decoder: Decoder,
    state: EngineState,
    sequence: ActiveSequence,
    end: int,
    context: int,
) -> tuple[EngineState, ActiveSequence, Float[Tensor, "N V"]]:
    """Computes a block of a prompt, up to `end`, and stores it in the prefix cache."""
    start = sequence.num_filled
    logits = _prefill_logits(decoder, state.slots, sequence, end, context)
    known = state.prefix_cache
    for block in sequence.blocks:
        if block.end == end:
            keys_values = engine_state.read_slot(state.slots, sequence.slot, start, end - start)
            known = prefix_cache.insert(known, block.hash, keys_values)
    sequence = sequence._replace(
        num_filled=end,
        last_prefill=state.clock,
        prompt_logprobs=sequence.prompt_logprobs + _prompt_logprobs(sequence, logits),
    )
    state = state._replace(prefix_cache=known, clock=state.clock + 1)
    return engine_state.replace_sequences(state, [sequence]), sequence, logits


def restore_prefix(state: EngineState, key: int) -> tuple[EngineState, ActiveSequence]:
    """Copies what the prefix cache has of a prompt into the sequence's slot.

    The last token is always computed, for its logits; if the prompt's log probabilities are
    requested, so is every token.

    Returns:
        The next state, and the sequence in it.
    """
    sequence = engine_state.get_sequence(state, key)
    request = sequence.request
    known = state.prefix_cache
    for block in sequence.blocks:
        if block.end <= sequence.num_filled:
            continue
        if block.end == len(request.prompt) or request.prompt_logprobs:
            break
        known, entry = prefix_cache.lookup(known, block.hash)
        if entry is None:
            break
        engine_state.write_slot(state.slots, sequence.slot, sequence.num_filled, entry)
        num_restored = block.end - sequence.num_filled
        sequence = sequence._replace(
            num_filled=block.end, num_cached=sequence.num_cached + num_restored
        )
    state = engine_state.replace_sequences(state._replace(prefix_cache=known), [sequence])
    return state, sequence


def _prefill_logits(
    decoder: Decoder,
    slots: InPlaceKVCache,
    sequence: ActiveSequence,
    end: int,
    context: int,
) -> Float[Tensor, "N V"]:
    """Computes the prompt's tokens up to `end`.

    Returns:
        The logits of all of them if the prompt's log probabilities are requested, else of the
        prompt's last token if it is among them, else none.
    """
    request = sequence.request
    slot = sequence.slot
    start = sequence.num_filled
    num_tokens = end - start
    num_padded = min(round_up(num_tokens, PREFILL_MULTIPLE), context - start)
    ids = [*request.prompt[start:end], *[0] * (num_padded - num_tokens)]
    num_keys = round_up(start + num_padded, KEY_MULTIPLE)
    device = slots.k.device
    past = InPlaceKVCache(
        k=slots.k[:, slot : slot + 1, :num_keys],
        v=slots.v[:, slot : slot + 1, :num_keys],
        length=torch.tensor([start], device=device),
    )
    first = num_tokens
    if request.prompt_logprobs:
        first = 0
    elif end == len(request.prompt):
        first = num_tokens - 1

    def head(
        weight: Any,
        hidden: Tensor,
        *,
        softcap: float = 0.0,
    ) -> Tensor:
        # In two dimensions: of a slice in three, PyTorch would copy the full weight.
        hidden_ND = hidden[0, first:num_tokens]
        if first == num_tokens:
            return hidden_ND
        return ops.logits(weight, hidden_ND, softcap=softcap)

    logits: Tensor
    tokens = torch.tensor([ids], device=device)
    logits, _ = decoder.apply(decoder.params, tokens, past, head=head)
    return logits.float().cpu()


def _prompt_logprobs(sequence: ActiveSequence, logits: Float[Tensor, "N V"]) -> tuple[Logprob, ...]:
    """The log probabilities of the prompt's tokens after those just computed, if requested."""
    request = sequence.request
    if not request.prompt_logprobs:
        return ()
    first = sequence.num_filled + 1
    following = request.prompt[first : first + len(logits)]
    return token_logprobs(logits[: len(following)], following, request.logprobs or 0)
