"""`slm serve`: a model, its chat page and OpenAI's protocol on one port.

Invariant: listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options

LOCAL = ("127.0.0.1", "localhost", "::1")
SECONDS = click.FloatRange(0, min_open=True)


@click.command("serve")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option("--name", help="What the model is called; default is its folder's name.")
@click.option("--max-batch", type=click.IntRange(1), default=8, show_default=True, help="Replies written at a time.")
@click.option("--max-queue", type=click.IntRange(1), default=64, show_default=True, help="Replies that may wait.")
@click.option("--max-reply", type=click.IntRange(0), default=0, help="Tokens of a reply at most; 0: the context.")
@click.option(
    "--api-key-file", type=click.Path(path_type=Path), help="Want a key, one of this file (see `slm keys add`)."
)
@click.option(
    "--cors", multiple=True, metavar="ORIGIN", help="Pages of this origin may use the server. May be repeated."
)
@click.option(
    "--allow-host", multiple=True, metavar="NAME", help="A name of this server, as behind a proxy. May be repeated."
)
@click.option(
    "--rate-limit",
    "requests_per_minute",
    type=click.IntRange(0),
    default=0,
    help="Requests per minute and key; 0: any number.",
)
@click.option(
    "--token-limit",
    "tokens_per_minute",
    type=click.IntRange(0),
    default=0,
    help="Tokens per minute and key; 0: any number.",
)
@click.option("--timeout", type=SECONDS, default=300.0, show_default=True, help="Seconds that a reply may take.")
@click.option(
    "--drain",
    "drain_timeout",
    type=SECONDS,
    default=30.0,
    show_default=True,
    help="Seconds to end replies when stopped.",
)
@click.option("--open-metrics", is_flag=True, help="/metrics wants no key.")
@click.option("--log/--no-log", "logs", default=False, help="A line of JSON per request on standard error.")
@click.option("--log-text", is_flag=True, help="Put what people write, and what they are told, into these lines.")
@click.option("--raw", is_flag=True, help="The weights as trained, not their running average.")
@options.quantize
@options.engine
@options.device
def command(
    model: Path,
    host: str,
    port: int,
    name: str | None,
    api_key_file: Path | None,
    allow_host: tuple[str, ...],
    logs: bool,
    raw: bool,
    device: str,
    quantize: str | None,
    engine: str,
    **settings: Any,
) -> None:
    """Serve MODEL: a chat page at /, OpenAI's protocol under /v1.

    \b
    Example:
        slm serve demo/dpo --port 8000
        slm serve demo/dpo --host 0.0.0.0 --api-key-file keys.txt --cors https://me.example
    """
    from slm_fn.pipeline.model import load
    from slm_fn.serve import keys, listen
    from slm_fn.serve.app import create_app
    from slm_fn.serve.config import ServeConfig, check

    config = check(
        ServeConfig(
            name=name or model.resolve().name,
            hosts=(*LOCAL, *allow_host) if host in LOCAL or allow_host else (),
            keys=keys.read(api_key_file) if api_key_file is not None else (),
            **settings,
        )
    )
    if logs or config.log_text:
        _log_to_stderr()
    listener = listen.listen(host, port)  # before the weights are read: a port that is taken is told at once
    loaded = load(model, device, raw, quantize=quantize, decode=engine)
    if loaded.decoder is not None and engine == "auto":
        options.note(f"decoding: {loaded.decoder.engine}, {loaded.decoder.reason}")
    app = create_app(loaded, config)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listener.getsockname()[1]}/"

    def announce(phase: str) -> None:
        if phase == "ready":
            click.echo(f"chat at {address}   (Ctrl+C stops)")
        elif phase == "draining" and app.state.worker.active:
            seconds = f"{config.drain_timeout:g} s"
            options.note(f"stopping: what is being written may end, for {seconds}; Ctrl+C ends it at once")

    listen.server(app, announce).run([listener])
    if app.state.worker.error is not None:
        raise app.state.worker.error


def _log_to_stderr() -> None:
    access = logging.getLogger("slm.access")
    access.addHandler(logging.StreamHandler(sys.stderr))
    access.setLevel(logging.INFO)
    access.propagate = False
