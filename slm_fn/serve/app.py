"""The application: Litestar with its routes and middleware, and the worker's lifetime.

Invariant: every response, of a file, a handler or an error, passes the security headers and the
access log; every route that is not public requires a key if the server has keys.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from litestar import Litestar, get
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.plugins.prometheus import PrometheusConfig
from litestar.static_files import create_static_files_router
from litestar.stores.memory import MemoryStore

from slm_fn.pipeline.model_folder import Model
from slm_fn.serve.config import ServeConfig, check
from slm_fn.serve.middleware import access_log, auth, body_timeout, origins, security_headers
from slm_fn.serve.protocol import errors
from slm_fn.serve.protocol.errors import ApiError
from slm_fn.serve.routes import admin, completions
from slm_fn.serve.services import Services, make_services, make_state, services_of

STATIC_FOLDER = Path(__file__).parent / "static"
RATE_CLEANUP_SECONDS = 60


def create_app(model: Model, config: ServeConfig) -> Litestar:
    """Returns an application that serves one model.

    Raises:
        ValueError: a setting is out of its range.
    """
    services = make_services(model, check(config))

    def provide_services() -> Services:
        return services

    return Litestar(
        route_handlers=_route_handlers(config),
        state=make_state(services),
        dependencies={"services": Provide(provide_services, sync_to_thread=False)},
        lifespan=[_lifespan],
        guards=[origins.make_guard(config)],
        middleware=_middleware(config),
        cors_config=origins.make_cors_config(config),
        before_send=[security_headers.make_hook(config), access_log.record_response],
        exception_handlers={
            ApiError: errors.handle_api_error,
            HTTPException: errors.handle_http_error,
            Exception: errors.handle_unexpected_error,
        },
        request_max_body_size=config.max_body,
        openapi_config=_openapi(config),
        logging_config=None,
    )


def _route_handlers(config: ServeConfig) -> list[Any]:
    """Returns the API, the metrics (public only if configured so) and the static files."""
    page = create_static_files_router(
        path="/",
        directories=[STATIC_FOLDER],
        html_mode=True,
        include_in_schema=False,
        opt={auth.PUBLIC: True},
    )
    page.register(admin.head_page)
    metrics_options = {auth.PUBLIC: True} if config.open_metrics else {}
    metrics = get("/metrics", opt=metrics_options, tags=["server"])(admin.metrics)
    return [
        completions.chat,
        completions.text,
        admin.models,
        admin.one_model,
        admin.health,
        admin.head_health,
        admin.ready,
        admin.tokenize,
        admin.detokenize,
        admin.tokenizer_info,
        metrics,
        page,
    ]


def _middleware(config: ServeConfig) -> list[Any]:
    """Returns the middleware, outermost first."""
    http_metrics = PrometheusConfig(app_name="slm", prefix="slm_http", group_path=True)
    return [
        http_metrics.middleware,
        body_timeout.make_middleware(config),
        *auth.make_auth_middleware(config),
        *auth.make_rate_limit(config),
    ]


def _openapi(config: ServeConfig) -> OpenAPIConfig:
    """Returns the settings of /schema/openapi.json.

    Only JSON: every page with which Litestar can render it loads scripts from a CDN.
    """
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
async def _lifespan(app: Litestar) -> AsyncIterator[None]:
    services = services_of(app)
    services.worker.start()
    cleanup = asyncio.create_task(_clean_up_rates(app))
    try:
        yield
    finally:
        cleanup.cancel()
        await asyncio.to_thread(services.grammars.close)
        await asyncio.to_thread(services.worker.close)


async def _clean_up_rates(app: Litestar) -> None:
    """Removes expired request rates: Litestar's store does so only for clients that come back."""
    while True:
        await asyncio.sleep(RATE_CLEANUP_SECONDS)
        store = app.stores.get("rate_limit")
        if isinstance(store, MemoryStore):
            await store.delete_expired()
