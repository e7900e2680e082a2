"""Other implementations of generation: transformers in bfloat16, and llama.cpp's server.

Invariant: a peer that cannot run is refused before anything is measured.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from slm_fn.bench.decode.timing import (
    BATCH_SIZE,
    DecodeRun,
    DecodeWorkload,
    Generate,
    Generation,
    time_generation,
)

PACKAGES = {"transformers": "transformers", "llama.cpp": "xllamacpp"}
"""The peers, and the Python package that each needs."""
LLAMA_CPP_SLOT_TOKENS = 1024


def check(names: Sequence[str], gguf: Path | None) -> None:
    """Checks that all peers can run.

    Args:
        names: keys of `PACKAGES`.
        gguf: the model file of llama.cpp.

    Raises:
        ValueError: a peer is unknown, is not installed or lacks its model file.
    """
    for name in names:
        if name not in PACKAGES:
            raise ValueError(f"--peer {name!r} is not one of {', '.join(PACKAGES)}")
        if name == "llama.cpp" and (gguf is None or not gguf.is_file()):
            raise ValueError("--peer llama.cpp: name a model file of this shape with --gguf FILE")
        package = PACKAGES[name]
        if find_spec(package) is None:
            raise ValueError(f"--peer {name}: {package} is not installed: pip install {package}")


def run(name: str, config: Any, gguf: Path | None, workload: DecodeWorkload) -> DecodeRun:
    """Generates with a peer in this process and returns its speeds.

    Args:
        name: a key of `PACKAGES`.
        config: a `ModelConfig`, the shape of transformers' model.
        gguf: the model file of llama.cpp.
        workload: what is measured.
    """
    if name == "transformers":
        generate = _load_transformers(config, workload)
    else:
        generate = _load_llama_cpp(str(gguf), workload)
    return DecodeRun(time_generation(generate, workload))


class _TokenClock:
    """A streamer for transformers' `generate`: notes when each token arrives, the prompt first."""

    def __init__(self, started: float) -> None:
        self.started = started
        self.seconds: list[float] = []

    def put(self, value: Any) -> None:
        self.seconds.append(time.perf_counter() - self.started)

    def end(self) -> None:
        pass


def _load_transformers(config: Any, workload: DecodeWorkload) -> Generate:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(workload.threads)
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
    model: Any = LlamaForCausalLM(shape)
    model.eval()
    model.to(workload.device, torch.bfloat16)

    def generate_tokens(ids: torch.Tensor, new_tokens: int, streamer: Any = None) -> None:
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=0,
                streamer=streamer,
            )

    def generate(num_requests: int, prompt_tokens: int, new_tokens: int) -> Generation:
        prompts = [workload.prompt(index, prompt_tokens) for index in range(num_requests)]
        ids = torch.tensor(prompts, device=workload.device)
        started = time.perf_counter()
        if num_requests == 1:
            clock = _TokenClock(started)
            generate_tokens(ids, new_tokens, clock)
            return Generation(time.perf_counter() - started, [clock.seconds[1]])
        # A streamer takes one request only, so a batch's first token is timed by a run of its own.
        generate_tokens(ids, 1)
        first_token_seconds = time.perf_counter() - started
        started = time.perf_counter()
        generate_tokens(ids, new_tokens)
        seconds = time.perf_counter() - started
        return Generation(seconds, [first_token_seconds] * num_requests)

    return generate


def _load_llama_cpp(path: str, workload: DecodeWorkload) -> Generate:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = BATCH_SIZE * LLAMA_CPP_SLOT_TOKENS
    params.n_parallel = BATCH_SIZE
    params.cpuparams.n_threads = workload.threads
    params.cpuparams_batch.n_threads = workload.threads
    server = xllamacpp.Server(params)

    def first_token_seconds(ids: list[int], new_tokens: int) -> float:
        arrivals: list[float] = []
        request = {
            "prompt": ids,
            "n_predict": new_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
            "stream": True,
        }
        started = time.perf_counter()

        def on_chunk(chunk: Any) -> None:
            arrivals.append(time.perf_counter() - started)

        server.handle_completions(request, on_chunk)
        return arrivals[0]

    def generate(num_requests: int, prompt_tokens: int, new_tokens: int) -> Generation:
        def run_request(index: int) -> float:
            return first_token_seconds(workload.prompt(index, prompt_tokens), new_tokens)

        started = time.perf_counter()
        with ThreadPoolExecutor(num_requests) as pool:
            firsts = list(pool.map(run_request, range(num_requests)))
        return Generation(time.perf_counter() - started, firsts)

    return generate
