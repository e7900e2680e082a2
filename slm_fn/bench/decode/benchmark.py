"""`slm bench decode`: generation speed, compared with the memory bandwidth and with peers.

Invariant: the engine that is measured is the one that `slm serve` runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from slm_fn.bench.decode import peers
from slm_fn.bench.decode.report import PRECISIONS, DecodeReport, make_report
from slm_fn.bench.decode.timing import (
    BATCH_SIZE,
    DecodeRun,
    DecodeWorkload,
    Generate,
    Generation,
    make_workload,
    time_generation,
)
from slm_fn.bench.rounds import Note, no_note, run_rounds
from slm_fn.core import device as devices
from slm_fn.core import random, tree
from slm_fn.core.types import Params
from slm_fn.infer import decoder as decoders
from slm_fn.infer import engine as engines
from slm_fn.infer import generate as generation
from slm_fn.infer.engine import Engine, EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.lift import quant
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig, ParamSpec
from slm_fn.pipeline import model_folder
from slm_fn.pipeline.planning.roofline import read_rate

DEFAULT_MODEL = ModelConfig(
    vocab_size=49_152,
    dim=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    ffn_dim=1536,
    context=2048,
)
"""The shape without `--model`, with random weights: that of SmolLM2-135M."""
MAX_CACHE_TOKENS = 512


class DecodeSettings(NamedTuple):
    """What to measure.

    Attributes:
        model: a model folder; None takes random weights of `DEFAULT_MODEL`.
        device: name of the device, or `auto`.
        engine: what runs the decoding step: `auto`, `native` or `eager`.
        repeat: number of rounds.
        peers: other implementations, keys of `peers.PACKAGES`.
        gguf: the model file that llama.cpp reads.
    """

    model: Path | None = None
    device: str = "auto"
    engine: str = "auto"
    repeat: int = 3
    peers: tuple[str, ...] = ()
    gguf: Path | None = None


class DecodeVariant(NamedTuple):
    """A variant of slm's own decoding.

    Attributes:
        config: the shape of the model.
        model: the folder with its weights; None draws random ones.
        precision: of the weights, one of `PRECISIONS`.
        engine: what runs the decoding step.
    """

    config: ModelConfig
    model: Path | None
    precision: str
    engine: str


def run(settings: DecodeSettings, note: Note = no_note) -> DecodeReport:
    """Measures generation in each precision, and that of the peers, in rounds.

    Args:
        settings: what to measure.
        note: gets a line after every run.

    Raises:
        ValueError: a peer is unknown, is not installed or lacks its model file.
        FileNotFoundError: there is no such model.
    """
    config = DEFAULT_MODEL
    if settings.model is not None:
        config = model_folder.load_metadata(settings.model).model
    peers.check(settings.peers, settings.gguf)
    device = devices.resolve(settings.device)
    num_threads = torch.get_num_threads()
    workload = make_workload(config.vocab_size, config.context, num_threads, str(device))

    calls: dict[str, Callable[[], DecodeRun]] = {}
    for precision in PRECISIONS:
        variant = DecodeVariant(config, settings.model, precision, settings.engine)
        calls[precision] = partial(run_own, variant, workload)
    for name in settings.peers:
        calls[name] = partial(peers.run, name, config, settings.gguf, workload)
    runs = run_rounds(calls, settings.repeat, note, _describe)
    return make_report(config, workload, runs, settings.repeat)


def run_own(variant: DecodeVariant, workload: DecodeWorkload) -> DecodeRun:
    """Generates in this process by the decoding engine and returns its speeds."""
    config = variant.config
    device = torch.device(workload.device)
    devices.set_num_threads(workload.threads)
    read_rate_before = read_rate(device)
    params = _load_params(variant, device)
    decoder = decoders.select(config, params, variant.engine)
    engine_config = EngineConfig(
        max_batch=BATCH_SIZE,
        context=min(config.context, MAX_CACHE_TOKENS),
        prefix_cache_tokens=0,
    )
    engine = engines.make(decoder, engine_config)
    timing = time_generation(_make_generate(engine, workload), workload)
    return DecodeRun(
        timing=timing,
        read_bytes_per_s=statistics.mean([read_rate_before, read_rate(device)]),
        bytes_per_token=_count_bytes_per_token(config, params),
        engine=decoder.engine,
    )


def _make_generate(engine: Engine, workload: DecodeWorkload) -> Generate:
    def generate(num_requests: int, prompt_tokens: int, new_tokens: int) -> Generation:
        requests = [
            Request(
                tuple(workload.prompt(index, prompt_tokens)),
                SampleConfig(temperature=0.0),
                max_tokens=new_tokens,
            )
            for index in range(num_requests)
        ]
        first_token_seconds: dict[int, float] = {}
        started = time.perf_counter()
        for token in generation.run(engine, requests):
            first_token_seconds.setdefault(token.key, time.perf_counter() - started)
        seconds = time.perf_counter() - started
        return Generation(seconds, list(first_token_seconds.values()))

    return generate


def _load_params(variant: DecodeVariant, device: torch.device) -> Params:
    config = variant.config
    is_quantized = variant.precision != "bf16"
    quant_config = quant.PRESETS[variant.precision] if is_quantized else None
    if variant.model is not None:
        return model_folder.load(
            variant.model, device, dtype=torch.bfloat16, quantize=quant_config
        ).params
    params: Params = tree.map_with_path(gpt.param_specs(config), _draw_weight)
    if quant_config is not None:
        params = quant.quantize(params, quant_config, gpt.matrix_paths(config).__contains__)
    on_device: Params = tree.to_device(tree.cast(params, torch.bfloat16), device)
    return on_device


def _draw_weight(path: str, spec: ParamSpec) -> Tensor:
    if spec.init_std is None:
        return torch.ones(spec.shape)
    std = spec.init_std or spec.shape[-1] ** -0.5
    return random.normal(random.fold_in(0, path), spec.shape, std)


def _count_bytes_per_token(config: ModelConfig, params: Params) -> int:
    """Returns the bytes of the weights that a decoding step reads in full.

    Of an embedding that is not the output head as well, a step reads one row only.
    """
    read_in_full = dict(params)
    if not config.tied:
        read_in_full.pop("embed", None)
    return sum(leaf.numel() * leaf.element_size() for leaf in tree.leaves(read_in_full))


def _describe(decode_run: DecodeRun) -> str:
    timing = decode_run.timing
    batch = f"8 at once {timing.batch8_tok_per_s:,.0f}"
    return f"{timing.tok_per_s:,.0f} tok/s, {batch}, prefill {timing.prefill_tok_per_s:,.0f}"
