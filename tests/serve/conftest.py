"""Fixtures for the served parrot."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch
import uvicorn
from parrot import TEXT, Parrot, Server

from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline.model import Generation
from slm_fn.serve.app import create_app
from slm_fn.text import bpe


@pytest.fixture(scope="session")
def parrot() -> Parrot:
    tokenizer = bpe.train([TEXT, "hello world"] * 3, vocab_size=300)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, dim=16, num_layers=1, num_heads=1, num_kv_heads=1, ffn_dim=16, context=256
    )
    Parrot.said = (*tokenizer.encode(TEXT), tokenizer.special("<|end|>"))
    return Parrot(config, {"norm": torch.ones(16)}, tokenizer, Generation())


@pytest.fixture(scope="session")
def server(parrot: Parrot) -> Iterator[Server]:
    config = uvicorn.Config(create_app(parrot, "parrot", max_active=2, max_waiting=2), port=0, log_level="error")
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield Server(f"http://127.0.0.1:{port}", port, Parrot)
    running.should_exit = True
    thread.join(10)


@pytest.fixture(autouse=True)
def _pace() -> Iterator[None]:
    Parrot.delay, Parrot.steps = 0.0, 0
    yield
    Parrot.delay = 0.0
