"""Fixtures for the served parrot."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from parrot import TEXT, Parrot, Server

from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.model import Generation, Model
from slm_fn.serve import listen
from slm_fn.serve.app import create_app
from slm_fn.serve.config import ServeConfig
from slm_fn.text import bpe


@pytest.fixture(scope="session")
def parrot() -> Parrot:
    tokenizer = bpe.train([TEXT, "hello world"] * 3, vocab_size=300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=1, num_kv_heads=1, ffn_dim=16, context=256
    )
    Parrot.said = (*tokenizer.encode(TEXT), tokenizer.special("<|end|>"))
    return Parrot(config, gpt.init(config, key=0), tokenizer, Generation())


@contextmanager
def serving(model: Model, config: ServeConfig, send_buffer: int | None = None) -> Iterator[Server]:
    """A server on a real port, ready; `send_buffer` bytes of a connection wait in the kernel."""
    running = listen.server(create_app(model, config), log_level="error")
    listener = listen.listen("127.0.0.1", 0)
    if send_buffer is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    thread = threading.Thread(target=running.run, args=([listener],), daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not (running.started and running.worker.phase == "ready"):
        assert time.monotonic() < end, running.worker.phase
        time.sleep(0.005)
    port = listener.getsockname()[1]
    yield Server(f"http://127.0.0.1:{port}", port, Parrot, running.config.app, running)
    running.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[Server]]:
    return serving


@pytest.fixture(scope="session")
def server(parrot: Parrot) -> Iterator[Server]:
    with serving(parrot, ServeConfig(name="parrot", max_batch=2, max_queue=2)) as running:
        yield running


@pytest.fixture(autouse=True)
def _pace() -> Iterator[None]:
    Parrot.delay, Parrot.steps = 0.0, 0
    yield
    Parrot.delay = 0.0
