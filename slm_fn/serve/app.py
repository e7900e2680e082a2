"""The application: Litestar with its routes, gates, logs and metrics in their order, and the worker's life.

Invariant: whatever answers, a file, a handler or an error, passes `gate.dress` and `access.watch`; what is not marked
public wants a key where there are keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch
from litestar import Litestar, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins.prometheus import PrometheusConfig
from litestar.static_files import create_static_files_router
from litestar.stores.memory import MemoryStore

from slm_fn.core import tree
from slm_fn.core.types import Params
from slm_fn.infer import engine
from slm_fn.infer.engine import Engine, EngineConfig
from slm_fn.pipeline.model import Model
from slm_fn.serve import access, completions, errors, gate, routes
from slm_fn.serve.config import ServeConfig, check
from slm_fn.serve.errors import ApiError
from slm_fn.serve.grammars import Grammars
from slm_fn.serve.limits import TokenRate
from slm_fn.serve.replies import Names
from slm_fn.serve.worker import Worker

STATIC = Path(__file__).parent / "static"
SWEEP_SECONDS = 60
LONG_TEXTS = 2  # read at a time by `/tokenize`: the others of the threads are for prompts


def create_app(model: Model, config: ServeConfig) -> Litestar:
    """An application that serves one model.

    Raises:
        ValueError: a setting is out of its range.
    """
    check(config)
    worker = Worker(_engine(model, config), model.tokenizer.token_bytes, config.max_queue)
    state = State(
        {
            "model": model,
            "name": config.name,
            "config": config,
            "worker": worker,
            "grammars": Grammars(model.tokenizer, model.stop_ids, config.grammar_timeout),
            "rate": TokenRate(config.tokens_per_minute),
            "names": Names(model.tokenizer),
            "long_texts": asyncio.Semaphore(LONG_TEXTS),
            "fingerprint": fingerprint(model.params),
            "created": int(time.time()),
        }
    )
    return Litestar(
        route_handlers=_handlers(config),
        state=state,
        lifespan=[_life],
        guards=[gate.at_home],
        middleware=_middleware(config),
        cors_config=gate.cors(config),
        before_send=[gate.dress, access.watch],
        exception_handlers={
            ApiError: errors.api_error,
            HTTPException: errors.http_error,
            Exception: errors.any_error,
        },
        request_max_body_size=config.max_body,
        openapi_config=_openapi(config),
        logging_config=None,
    )


def _handlers(config: ServeConfig) -> list[Any]:
    """The page, the protocol, and the figures, which are open to all only where the config says so."""
    page = create_static_files_router(
        path="/", directories=[STATIC], html_mode=True, include_in_schema=False, opt={gate.PUBLIC: True}
    )
    page.register(routes.page)
    open_metrics = {gate.PUBLIC: True} if config.open_metrics else {}
    figures = get("/metrics", opt=open_metrics, tags=["server"])(routes.metrics)
    answers = [completions.chat, completions.text, routes.models, routes.one_model]
    health = [routes.health, routes.alive, routes.ready]
    return [*answers, *health, routes.tokenize, routes.detokenize, routes.tokenizer_info, figures, page]


def _middleware(config: ServeConfig) -> list[Any]:
    """From the outside in: the HTTP figures, the clock on bodies, the key, and how often it may ask."""
    counted = PrometheusConfig(app_name="slm", prefix="slm_http", group_path=True)
    keyed = [DefineMiddleware(gate.Bearer, keys=config.keys)] if config.keys else []
    return [counted.middleware, gate.patience(config), *keyed, *gate.rates(config)]


def _openapi(config: ServeConfig) -> OpenAPIConfig:
    """The document at /schema/openapi.json. JSON alone: every page that Litestar can show it in loads from a CDN."""
    scheme = SecurityScheme(type="http", scheme="bearer")
    return OpenAPIConfig(
        title="slm_fn",
        version="1",
        description="OpenAI's protocol for one small language model.",
        path="/schema",
        render_plugins=[JsonRenderPlugin()],
        components=Components(security_schemes={"key": scheme}),
        security=[{"key": []}] if config.keys else None,
    )


@asynccontextmanager
async def _life(app: Litestar) -> AsyncIterator[None]:
    app.state.worker.start()
    sweeping = asyncio.create_task(_sweep(app))
    try:
        yield
    finally:
        sweeping.cancel()
        await asyncio.to_thread(app.state.grammars.close)
        await asyncio.to_thread(app.state.worker.close)


async def _sweep(app: Litestar) -> None:
    """Forget the rates of those who went: Litestar's store drops them only when they ask again."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        store = app.stores.get("rate_limit")
        if isinstance(store, MemoryStore):
            await store.delete_expired()


def _engine(model: Model, config: ServeConfig) -> Callable[[], Engine]:
    def make() -> Engine:
        settings = EngineConfig(max_batch=config.max_batch, size=model.config.context)
        return engine.make(model.apply, model.init_cache, model.params, settings)

    return make


def fingerprint(params: Params) -> str:
    """A short hash of weights: replies of equal fingerprints come from the same numbers."""
    hashed = hashlib.blake2b(digest_size=6)
    for path, leaf in sorted(tree.paths(params).items()):
        hashed.update(path.encode())
        hashed.update(memoryview(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return f"fp_{hashed.hexdigest()}"
