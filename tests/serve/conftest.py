"""Fixtures of the server's tests: a model with a fixed reply, and servers on real ports."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from scripted_model import TEXT, RunningServer, ScriptedModel

from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.model_folder import GenerationConfig, Model
from slm_fn.serve.app import create_app
from slm_fn.serve.config import ServeConfig
from slm_fn.serve.server import listen, make_server
from slm_fn.text.training import bpe


@pytest.fixture(scope="session")
def scripted_model() -> ScriptedModel:
    tokenizer = bpe.train([TEXT, "hello world"] * 3, vocab_size=300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        ffn_dim=16,
        context=256,
    )
    ScriptedModel.reply_ids = (*tokenizer.encode(TEXT), tokenizer.special_id("<|end|>"))
    return ScriptedModel(config, gpt.init(config, key=0), tokenizer, GenerationConfig())


@contextmanager
def running_server(
    model: Model, config: ServeConfig, send_buffer_bytes: int | None = None
) -> Iterator[RunningServer]:
    """A server on a real port, ready; the kernel buffers `send_buffer_bytes` of a connection."""
    server = make_server(create_app(model, config), log_level="error")
    listener = listen("127.0.0.1", 0)
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 120
    while not (server.started and server.worker.phase == "ready"):
        assert time.monotonic() < deadline, server.worker.phase
        time.sleep(0.005)
    port = listener.getsockname()[1]
    yield RunningServer(f"http://127.0.0.1:{port}", port, ScriptedModel, server)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def serve() -> Callable[..., AbstractContextManager[RunningServer]]:
    return running_server


@pytest.fixture(scope="session")
def server(scripted_model: ScriptedModel) -> Iterator[RunningServer]:
    config = ServeConfig(name="scripted", max_batch=2, max_queue=2)
    with running_server(scripted_model, config) as running:
        yield running


@pytest.fixture(autouse=True)
def _full_speed() -> Iterator[None]:
    ScriptedModel.seconds_per_step = 0.0
    ScriptedModel.num_steps = 0
    ScriptedModel.permits = None
    yield
    ScriptedModel.seconds_per_step = 0.0
    if ScriptedModel.permits is not None:
        ScriptedModel.permits.release(1000)  # a test that failed left the model waiting
