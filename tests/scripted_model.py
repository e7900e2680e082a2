"""A model whose reply and speed a test chooses, and the server that serves it."""

import http.client
import json
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import torch
from litestar import Litestar

from slm_fn.nn import ops
from slm_fn.nn.cache import InPlaceKVCache
from slm_fn.pipeline.model_folder import Model
from slm_fn.serve.server import Server
from slm_fn.serve.services import Services, services_of

TEXT = 'I say: <img src=x onerror="document.title=1"> & né 🙂, **bold** then more words follow.'


class ScriptedModel(Model):
    """A valid model whose forward pass continues every conversation with the same reply.

    Attributes:
        reply_ids: the tokens of the reply, the stop token last.
        seconds_per_step: how long a forward pass takes.
        num_steps: forward passes so far.
        permits: one is taken by each forward pass, which waits for it; None is no limit.
    """

    reply_ids: tuple[int, ...] = ()
    seconds_per_step = 0.0
    num_steps = 0
    permits: threading.Semaphore | None = None

    @property
    def apply(self) -> Any:
        def apply(
            params: Any,
            tokens: torch.Tensor,
            past: InPlaceKVCache,
            head: Callable[..., torch.Tensor] = ops.linear,
        ) -> tuple[torch.Tensor, InPlaceKVCache]:
            if ScriptedModel.permits is not None:
                ScriptedModel.permits.acquire()
            ScriptedModel.num_steps += 1
            time.sleep(ScriptedModel.seconds_per_step)
            num_sequences, length = tokens.shape
            logits = torch.zeros(num_sequences, length, self.tokenizer.vocab_size)
            for i, start in enumerate(past.length.tolist()):
                # The cache holds the position in the reply; several tokens at once are a prompt.
                is_prompt = length > 1
                position = 0 if is_prompt else int(past.k[0, i, start - 1, 0, 0]) + 1
                last = len(self.reply_ids) - 1
                logits[i, :, self.reply_ids[min(position, last)]] = 50.0
                past.k[0, i, start : start + length, 0, 0] = float(position)
            advanced = past._replace(length=past.length + length)
            return head(torch.eye(self.tokenizer.vocab_size), logits), advanced

        return apply


class RunningServer(NamedTuple):
    """A server on a real port, and the class that sets the speed of its model."""

    url: str
    port: int
    model: type[ScriptedModel]
    server: Server

    @property
    def app(self) -> Litestar:
        return self.server.config.app

    @property
    def services(self) -> Services:
        return services_of(self.app)

    def health(self) -> dict[str, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/health")
            return json.loads(connection.getresponse().read())

    def idle_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.health()["active"] == 0:
                return True
            time.sleep(0.01)
        return False
