"""`slm serve`: a model, its chat page and OpenAI's protocol on one port.

Invariant: listens on this machine alone unless told otherwise.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from slm_fn.cli import options

LOCAL = ("127.0.0.1", "localhost", "::1")
DRAIN_SECONDS = 10


@click.command("serve")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--max-batch", type=click.IntRange(1), default=4, show_default=True, help="Generations that take turns; more wait."
)
@click.option("--raw", is_flag=True, help="The weights as trained, not their running average.")
@options.device
def command(model: Path, host: str, port: int, max_batch: int, raw: bool, device: str) -> None:
    """Serve MODEL: a chat page at /, OpenAI's protocol under /v1.

    \b
    Example:
        slm serve demo/dpo --port 8000
    """
    import signal

    import uvicorn

    from slm_fn.pipeline.model import load
    from slm_fn.serve.app import create_app

    loaded = load(model, device, raw)
    listener = _listen(host, port)
    app = create_app(loaded, model.resolve().name, max_batch, hosts=LOCAL if host in LOCAL else ())
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"chat at http://{shown}:{listener.getsockname()[1]}/   (Ctrl+C stops)")
    # Replies under way may end when the server is told to stop; uvicorn then raises the signal once more, to nobody.
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=DRAIN_SECONDS, server_header=False)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: None)
    uvicorn.Server(config).run([listener])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens: only then is the port known, and who reads the address may connect at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # on Windows it would let two servers share a port
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise ValueError(f"cannot listen on {host}:{port}: {why}; choose another --port or --host") from None
    return listener
