"""`slm serve`: a model, its chat page and the OpenAI protocol on one port.

Invariant: by default the server listens on this machine's loopback address only.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from slm_fn.cli import options, output
from slm_fn.cli.models.loading import (
    LoadOptions,
    collect_load_options,
    load_model,
    load_options,
)

if TYPE_CHECKING:
    from slm_fn.serve.config import ServeConfig
    from slm_fn.serve.scheduler.worker import Worker

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
SECONDS = click.FloatRange(0, min_open=True)


class Address(NamedTuple):
    """Where to listen, and the further host names that requests may carry."""

    host: str
    port: int
    allow_host: tuple[str, ...]


@click.command("serve")
@click.argument("model", type=options.PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port; 0 picks a free one.",
)
@click.option("--name", help="Model name in the API (default: the folder's name).")
@click.option(
    "--max-batch",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Replies generated at the same time.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Replies that may wait in the queue.",
)
@click.option(
    "--prefill-chunk",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Prompt tokens computed between two tokens of the other replies.",
)
@click.option(
    "--prefix-tokens",
    "prefix_cache_tokens",
    type=click.IntRange(0),
    default=4096,
    show_default=True,
    help="Tokens of known beginnings of prompts to keep; 0 keeps none.",
)
@click.option(
    "--max-reply",
    type=click.IntRange(0),
    default=0,
    help="Maximum tokens of a reply; 0: limited by the context.",
)
@click.option(
    "--api-key-file",
    type=options.PATH,
    help="Require an API key from this file (see `slm keys add`).",
)
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Allow pages of this origin to use the server. May be repeated.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Accept this Host header too, as behind a proxy. May be repeated.",
)
@click.option(
    "--rate-limit",
    "requests_per_minute",
    type=click.IntRange(0),
    default=0,
    help="Requests per minute and key; 0: unlimited.",
)
@click.option(
    "--token-limit",
    "tokens_per_minute",
    type=click.IntRange(0),
    default=0,
    help="Tokens per minute and key; 0: unlimited.",
)
@click.option(
    "--timeout",
    type=SECONDS,
    default=300.0,
    show_default=True,
    help="Seconds that a reply may take.",
)
@click.option(
    "--drain",
    "drain_timeout",
    type=SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds that running replies may take to finish at shutdown.",
)
@click.option("--open-metrics", is_flag=True, help="Serve /metrics without an API key.")
@click.option(
    "--log/--no-log",
    "logs",
    default=False,
    help="Log each request as a line of JSON on standard error.",
)
@click.option("--log-text", is_flag=True, help="Include prompts and replies in the request log.")
@load_options
@options.collect("address", Address)
@collect_load_options
def command(
    model: Path,
    address: Address,
    name: str | None,
    api_key_file: Path | None,
    logs: bool,
    loading: LoadOptions,
    **settings: Any,
) -> None:
    """Serve MODEL: a chat page at /, the OpenAI protocol under /v1.

    \b
    Example:
        slm serve demo/dpo --port 8000
        slm serve demo/dpo --host 0.0.0.0 --api-key-file keys.txt --cors https://me.example
    """
    from slm_fn.serve import api_keys
    from slm_fn.serve.config import ServeConfig, check

    config = check(
        ServeConfig(
            name=name or model.resolve().name,
            hosts=_allowed_hosts(address),
            keys=api_keys.read(api_key_file) if api_key_file is not None else (),
            **settings,
        )
    )
    if logs or config.log_text:
        _log_to_stderr()
    _serve(model, address, loading, config)


def _allowed_hosts(address: Address) -> tuple[str, ...]:
    """Returns the Host headers to accept; empty accepts any, for a server on a public address."""
    if address.host in LOCAL_HOSTS or address.allow_host:
        return (*LOCAL_HOSTS, *address.allow_host)
    return ()


def _serve(model: Path, address: Address, loading: LoadOptions, config: ServeConfig) -> None:
    """Load the model and serve it until the process is stopped."""
    from slm_fn.serve import server
    from slm_fn.serve.app import create_app
    from slm_fn.serve.services import services_of

    # Listen before the weights are read: a port in use is reported at once.
    listener = server.listen(address.host, address.port)
    loaded = load_model(model, loading)
    if loading.engine == "auto":
        output.note(f"decoding engine: {loaded.decoder.engine}, {loaded.decoder.reason}")
    app = create_app(loaded, config)
    worker = services_of(app).worker
    url = _url(address.host, listener.getsockname()[1])
    server.make_server(app, _announcer(url, worker, config.drain_timeout)).run([listener])
    if worker.error is not None:
        raise worker.error


def _url(host: str, port: int) -> str:
    is_ipv6 = ":" in host
    return f"http://[{host}]:{port}/" if is_ipv6 else f"http://{host}:{port}/"


def _announcer(url: str, worker: Worker, drain_seconds: float) -> Callable[[str], None]:
    """Returns a function that prints the server's phases to the user."""

    def announce(phase: str) -> None:
        if phase == "ready":
            click.echo(f"chat at {url}   (Ctrl+C stops)")
        elif phase == "draining" and worker.num_active:
            output.note(
                f"shutting down: running replies may take {drain_seconds:g} s to finish; "
                "Ctrl+C stops them at once"
            )

    return announce


def _log_to_stderr() -> None:
    access = logging.getLogger("slm.access")
    access.addHandler(logging.StreamHandler(sys.stderr))
    access.setLevel(logging.INFO)
    access.propagate = False
