"""What the routes share: the model, the worker, the caches and the limits of one server.

Invariant: built once per application and immutable; routes receive it as the argument `services`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from litestar import Litestar
from litestar.datastructures import State

from slm_fn.core import tree
from slm_fn.core.types import Params
from slm_fn.infer import engine as engines
from slm_fn.infer.engine import Engine, EngineConfig
from slm_fn.pipeline.model_folder import Model
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.middleware.token_budget import TokenBudget
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.protocol.logprobs import TokenFormatter
from slm_fn.serve.scheduler.grammar_cache import GrammarCache
from slm_fn.serve.scheduler.worker import Worker

MAX_TOKENIZE_THREADS = 2
"""Texts that `/tokenize` converts at a time; the other threads are for prompts."""


class Services(NamedTuple):
    """The parts of a running server.

    Attributes:
        model: the model that is served.
        config: the settings.
        worker: the thread that owns the engine.
        grammars: compiled grammars.
        token_budget: tokens per minute and client.
        token_formatter: texts of tokens in responses.
        tokenize_slots: limits the threads of `/tokenize`.
        fingerprint: hash of the weights.
        created: start of the server, in Unix seconds.
    """

    model: Model
    config: ServeConfig
    worker: Worker
    grammars: GrammarCache
    token_budget: TokenBudget
    token_formatter: TokenFormatter
    tokenize_slots: asyncio.Semaphore
    fingerprint: str
    created: int

    def check_model_name(self, name: str | None) -> None:
        """Rejects the name of a model that is not served; None means any.

        Raises:
            ApiError: 404.
        """
        served = self.config.name
        if name and name != served:
            message = f"the model {name!r} does not exist; this server serves {served!r}"
            raise ApiError(404, message, "model_not_found", "model")


def make_services(model: Model, config: ServeConfig) -> Services:
    """Builds the services of a model; the engine is built when the worker starts."""
    worker = Worker(_engine_maker(model, config), model.tokenizer.token_bytes, config.max_queue)
    return Services(
        model=model,
        config=config,
        worker=worker,
        grammars=GrammarCache(model.tokenizer, model.stop_ids, config.grammar_timeout),
        token_budget=TokenBudget(config.tokens_per_minute),
        token_formatter=TokenFormatter(model.tokenizer),
        tokenize_slots=asyncio.Semaphore(MAX_TOKENIZE_THREADS),
        fingerprint=weights_fingerprint(model.params),
        created=int(time.time()),
    )


def make_state(services: Services) -> State:
    """Returns the application state that `services_of` reads."""
    return State({"services": services})


def services_of(app: Litestar) -> Services:
    """Returns the services of an application that `create_app` made."""
    services: Services = app.state.services
    return services


def _engine_maker(model: Model, config: ServeConfig) -> Callable[[], Engine]:
    def make_engine() -> Engine:
        settings = EngineConfig(
            max_batch=config.max_batch,
            context=model.config.context,
            prefill_chunk=config.prefill_chunk,
            prefix_cache_tokens=config.prefix_cache_tokens,
        )
        return engines.make(model.decoder, settings)

    return make_engine


def weights_fingerprint(params: Params) -> str:
    """Returns a short hash of weights: equal fingerprints mean equal weights."""
    digest = hashlib.blake2b(digest_size=6)
    for path, leaf in sorted(tree.named_leaves(params).items()):
        digest.update(path.encode())
        raw_bytes = leaf.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(memoryview(raw_bytes.numpy()))
    return f"fp_{digest.hexdigest()}"
