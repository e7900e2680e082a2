"""Timing of generation: every implementation gets prompts of the same lengths and the same warm-up.

Invariant: the speeds of every implementation come from `time_generation`.
"""

from __future__ import annotations

import statistics
from typing import NamedTuple, Protocol

BATCH_SIZE = 8
"""Requests at once, where more than one is measured."""
NUM_PREFILLS = 3
"""Repetitions of reading the long prompt; the median counts."""


class DecodeWorkload(NamedTuple):
    """What every implementation is measured on.

    Attributes:
        vocab_size: number of different token ids.
        prompt_tokens: length of a request's prompt.
        new_tokens: tokens to generate after it.
        long_prompt: length of the prompt whose reading is timed.
        threads: CPU threads.
        device: name of the device that computes.
    """

    vocab_size: int
    prompt_tokens: int = 64
    new_tokens: int = 65
    long_prompt: int = 400
    threads: int = 1
    device: str = "cpu"

    def prompt(self, index: int, length: int) -> list[int]:
        """Returns the token ids of a request: they differ by index, not by implementation."""
        margin = min(256, self.vocab_size // 4)
        num_ids = self.vocab_size - 2 * margin
        return [(7919 * (index + 1) + 104_729 * i) % num_ids + margin for i in range(length)]


def make_workload(vocab_size: int, context: int, threads: int, device: str) -> DecodeWorkload:
    """Returns the usual workload, shortened to what fits a context.

    Example:
        >>> make_workload(4096, 256, 1, "cpu")[1:4], make_workload(96, 64, 1, "cpu")[1:4]
        ((64, 65, 255), (31, 32, 63))
    """
    usual = DecodeWorkload(vocab_size, threads=threads, device=device)
    return usual._replace(
        prompt_tokens=min(usual.prompt_tokens, (context - 1) // 2),
        new_tokens=min(usual.new_tokens, context // 2),
        long_prompt=min(usual.long_prompt, context - 1),
    )


class DecodeTiming(NamedTuple):
    """The speeds of one round.

    Attributes:
        tok_per_s: of one request, after its first token.
        request_tok_per_s: of one request, its prompt included.
        batch8_tok_per_s: of 8 requests at once, prompts included, in total.
        prefill_tok_per_s: prompt tokens per second of the long prompt.
        first_token_p50_ms: median time to the first token of 8 requests at once.
    """

    tok_per_s: float
    request_tok_per_s: float
    batch8_tok_per_s: float
    prefill_tok_per_s: float
    first_token_p50_ms: float


class DecodeRun(NamedTuple):
    """One round of one implementation.

    Attributes:
        timing: its speeds.
        read_bytes_per_s: this machine's rate of reading memory, the mean of before and after; 0 if
            not measured.
        bytes_per_token: weights that a decoding step reads; 0 if unknown.
        engine: what ran the step.
    """

    timing: DecodeTiming
    read_bytes_per_s: float = 0.0
    bytes_per_token: int = 0
    engine: str = ""


class Generation(NamedTuple):
    """How long some requests took together.

    Attributes:
        seconds: until all their tokens were generated.
        first_token_seconds: until each request's first token.
    """

    seconds: float
    first_token_seconds: list[float]


class Generate(Protocol):
    """Generates for some requests at once."""

    def __call__(self, num_requests: int, prompt_tokens: int, new_tokens: int) -> Generation:
        """Returns how long it took.

        Args:
            num_requests: requests that start together.
            prompt_tokens: length of each prompt.
            new_tokens: tokens to generate for each.
        """


def time_generation(generate: Generate, workload: DecodeWorkload) -> DecodeTiming:
    """Measures one request, eight at once and a long prompt, each after a warm-up."""
    prompt_tokens = workload.prompt_tokens
    new_tokens = workload.new_tokens
    generate(1, prompt_tokens, 4)
    single = generate(1, prompt_tokens, new_tokens)
    generate(BATCH_SIZE, prompt_tokens, 2)
    batch = generate(BATCH_SIZE, prompt_tokens, new_tokens)
    prefills = [generate(1, workload.long_prompt, 1).seconds for _ in range(NUM_PREFILLS)]
    (first_token_seconds,) = single.first_token_seconds
    return DecodeTiming(
        tok_per_s=(new_tokens - 1) / (single.seconds - first_token_seconds),
        request_tok_per_s=new_tokens / single.seconds,
        batch8_tok_per_s=BATCH_SIZE * new_tokens / batch.seconds,
        prefill_tok_per_s=workload.long_prompt / statistics.median(prefills),
        first_token_p50_ms=1e3 * statistics.median(batch.first_token_seconds),
    )
