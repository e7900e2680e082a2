"""A model that says what it is told to, token by token and not too fast, and the server it stands behind."""

import http.client
import json
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, NamedTuple

import torch

from slm_fn.nn import ops
from slm_fn.nn.cache import Slots
from slm_fn.pipeline.model import Model

TEXT = 'I say: <img src=x onerror="document.title=1"> & né 🙂, **bold** then more words follow.'


class Parrot(Model):
    """A legitimate model whose forward pass continues every conversation with the same text, `delay` s a token."""

    delay = 0.0
    steps = 0
    said: tuple[int, ...] = ()

    @property
    def apply(self) -> Any:
        def apply(
            params: Any, tokens: torch.Tensor, past: Slots, head: Callable[..., torch.Tensor] = ops.linear
        ) -> tuple[torch.Tensor, Slots]:
            Parrot.steps += 1
            time.sleep(Parrot.delay)
            rows, length = tokens.shape
            wanted = torch.zeros(rows, length, self.tokenizer.vocab_size)
            for row, start in enumerate(past.length.tolist()):
                # How much has been said is read off the cache: a prompt (many tokens) comes before the first word.
                place = 0 if length > 1 else int(past.k[0, row, start - 1, 0, 0]) + 1
                wanted[row, :, self.said[min(place, len(self.said) - 1)]] = 50.0
                past.k[0, row, start : start + length, 0, 0] = float(place)
            return head(torch.eye(self.tokenizer.vocab_size), wanted), past._replace(length=past.length + length)

        return apply


class Server(NamedTuple):
    """Where it listens, what it serves, and the class that sets its pace."""

    url: str
    port: int
    model: type[Parrot]
    app: Any = None
    running: Any = None

    def health(self) -> dict[str, Any]:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)) as link:
            link.request("GET", "/health")
            return json.loads(link.getresponse().read())

    def idle_within(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.health()["active"] == 0:
                return True
            time.sleep(0.01)
        return False
