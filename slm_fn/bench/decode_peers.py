"""Who else generates with a model of the same size: transformers' generate in bfloat16, and llama.cpp's server.

Invariant: everybody is paced by the same function, over prompts of the same lengths.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

KINDS = {"transformers": "transformers", "llama.cpp": "xllamacpp"}
"""Peers, and the package each needs."""


class Work(NamedTuple):
    """What everybody is asked for: `new_tokens` behind prompts of `prompt_tokens`, and the reading of a long prompt."""

    vocab_size: int
    prompt_tokens: int = 64
    new_tokens: int = 65
    long_prompt: int = 400
    threads: int = 1
    device: str = "cpu"

    def prompt(self, row: int, length: int) -> list[int]:
        """Ids for a row: other ones for each, the same for everybody."""
        edge = min(256, self.vocab_size // 4)
        return [(7919 * (row + 1) + 104_729 * i) % (self.vocab_size - 2 * edge) + edge for i in range(length)]


def work_for(vocab_size: int, context: int, threads: int, device: str) -> Work:
    """The usual work, or as much of it as a context has room for.

    Example:
        >>> work_for(4096, 256, 1, "cpu")[1:4], work_for(96, 64, 1, "cpu")[1:4]
        ((64, 65, 255), (31, 32, 63))
    """
    usual = Work(vocab_size, threads=threads, device=device)
    prompt, new = min(usual.prompt_tokens, (context - 1) // 2), min(usual.new_tokens, context // 2)
    return usual._replace(prompt_tokens=prompt, new_tokens=new, long_prompt=min(usual.long_prompt, context - 1))


class Pace(NamedTuple):
    """Tokens a second: behind the first one, of one request with its prompt, of 8 such at once in all, of a prompt.

    And milliseconds until the first tokens of those 8.
    """

    tok_per_s: float
    request_tok_per_s: float
    batch8_tok_per_s: float
    prefill_tok_per_s: float
    first_token_p50_ms: float


Generate = Callable[[int, int, int], tuple[float, list[float]]]
"""`(rows, length of prompts, new tokens)` to seconds in all, and seconds until each row's first token."""


def pace(generate: Generate, work: Work) -> Pace:
    """How fast somebody generates; called once before the clock runs."""
    generate(1, work.prompt_tokens, 4)
    alone, (first,) = generate(1, work.prompt_tokens, work.new_tokens)
    generate(8, work.prompt_tokens, 2)
    together, firsts = generate(8, work.prompt_tokens, work.new_tokens)
    reading = statistics.median(generate(1, work.long_prompt, 1)[0] for _ in range(3))
    return Pace(
        tok_per_s=(work.new_tokens - 1) / (alone - first),
        request_tok_per_s=work.new_tokens / alone,
        batch8_tok_per_s=8 * work.new_tokens / together,
        prefill_tok_per_s=work.long_prompt / reading,
        first_token_p50_ms=statistics.median(firsts) * 1e3,
    )


def check(names: Sequence[str], gguf: Path | None) -> None:
    """Refuse peers that cannot run, before anything is measured.

    Raises:
        ValueError: one is unknown or not installed, or has no file.
    """
    for name in names:
        if name not in KINDS:
            raise ValueError(f"--peer {name!r} is not one of {', '.join(KINDS)}")
        if name == "llama.cpp" and (gguf is None or not gguf.is_file()):
            raise ValueError("--peer llama.cpp: name a model file of this shape with --gguf FILE")
        if find_spec(KINDS[name]) is None:
            raise ValueError(f"--peer {name}: {KINDS[name]} is not installed: pip install {KINDS[name]}")


def run(name: str, config: Any, gguf: Path | None, work: Work) -> Pace:
    """Generate with a peer in this process, and say how fast."""
    return pace(_transformers(config, work) if name == "transformers" else _llama_cpp(str(gguf), work), work)


def _transformers(config: Any, work: Work) -> Generate:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(work.threads)
    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.dim,
        intermediate_size=config.ffn_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.context,
        tie_word_embeddings=config.tied,
    )
    model: Any = LlamaForCausalLM(shape).eval()
    model.to(work.device, torch.bfloat16)

    def generate(rows: int, length: int, num_new: int) -> tuple[float, list[float]]:
        ids = torch.tensor([work.prompt(row, length) for row in range(rows)], device=work.device)
        begun, at = time.perf_counter(), []

        class Clock:
            """Told every row of new ids; the first call is the prompt's."""

            def put(self, value: Any) -> None:
                at.append(time.perf_counter() - begun)

            def end(self) -> None:
                pass

        # Rows are one batch there, and only a single one may be streamed: the first token is that of a run for one.
        told: dict[str, Any] = {"streamer": Clock()} if rows == 1 else {}
        asked = {"min_new_tokens": num_new, "max_new_tokens": num_new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            if rows > 1:
                model.generate(
                    ids, attention_mask=torch.ones_like(ids), **asked | {"min_new_tokens": 1, "max_new_tokens": 1}
                )
                at += [0.0, time.perf_counter() - begun]
                begun = time.perf_counter()
            model.generate(ids, attention_mask=torch.ones_like(ids), **asked, **told)
        return time.perf_counter() - begun, [at[1]] * rows

    return generate


def _llama_cpp(path: str, work: Work) -> Generate:
    import xllamacpp

    told = xllamacpp.CommonParams()
    told.model.path = path
    told.n_ctx, told.n_parallel = 8 * 1024, 8
    told.cpuparams.n_threads = told.cpuparams_batch.n_threads = work.threads
    server = xllamacpp.Server(told)

    def ask(ids: list[int], num_new: int) -> tuple[float, float]:
        begun, at = time.perf_counter(), []
        server.handle_completions(
            {
                "prompt": ids,
                "n_predict": num_new,
                "ignore_eos": True,
                "cache_prompt": False,
                "temperature": 0,
                "stream": True,
            },
            lambda piece: at.append(time.perf_counter() - begun),
        )
        return at[0], time.perf_counter() - begun

    def generate(rows: int, length: int, num_new: int) -> tuple[float, list[float]]:
        begun = time.perf_counter()
        with ThreadPoolExecutor(rows) as pool:
            done = list(pool.map(lambda row: ask(work.prompt(row, length), num_new), range(rows)))
        return time.perf_counter() - begun, [first for first, _ in done]

    return generate
