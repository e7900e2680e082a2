"""Who else trains a model of the same size: transformers' Llama, and a plain nn.Module under torch.compile.

Invariant: a peer's process loads nothing of ours that would weigh on its memory or its speed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm_fn.bench.pace import Pace, Work, pace, tokens_at


class Size(NamedTuple):
    """The shape of a decoder in Llama's layout."""

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    tied: bool


class Peer(NamedTuple):
    """Who, in which precision, and whether compiled. Optimizer: AdamW, gradients clipped, as ours."""

    kind: str
    precision: str
    compiled: bool

    @property
    def name(self) -> str:
        """As it is told: `transformers bfloat16 compiled`."""
        return f"{self.kind} {self.precision} {'compiled' if self.compiled else 'eager'}"


KINDS = ("transformers", "plain")


def lineup(kind: str, precision: str = "", compiled: bool | None = None, native: str = "bfloat16") -> list[Peer]:
    """The peers that a kind means: what is left open is run in every way that people run it.

    Args:
        native: the precision that we train in; transformers also shows what float32 gives.

    Raises:
        ValueError: no such kind, or transformers is not installed.

    Example:
        >>> [peer.name for peer in lineup("plain")]
        ['plain bfloat16 compiled']
    """
    if kind not in KINDS:
        raise ValueError(f"--peer {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "transformers" and find_spec("transformers") is None:
        raise ValueError("--peer transformers: transformers is not installed: pip install transformers")
    if precision or compiled is not None or kind == "plain":
        return [Peer(kind, precision or native, kind == "plain" if compiled is None else compiled)]
    ways = [("float32", False)] + ([("bfloat16", False), ("bfloat16", True)] if native == "bfloat16" else [])
    return [Peer(kind, *way) for way in ways]


def run(peer: Peer, size: Size, work: Work) -> Pace:
    """Train a peer in this process, and say how fast."""
    place = torch.device(work.device)
    torch.manual_seed(0)
    forward, model = (_llama if peer.kind == "transformers" else _plain)(size, work)
    model.to(place).train()
    fused = {"fused": True} if peer.kind == "plain" else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, **fused)
    if peer.compiled:
        forward = torch.compile(forward)
    low: Any = contextlib.nullcontext()
    if peer.precision == "bfloat16":
        low = torch.autocast(place.type, dtype=torch.bfloat16)

    def step(tokens: Tensor) -> Tensor:
        with low:
            loss = forward(tokens)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def batches() -> Iterator[Tensor]:
        for position in range(work.warmup + work.steps):
            yield torch.from_numpy(tokens_at(work, position)).to(place)

    return pace(step, batches(), work)._replace(engine="compile" if peer.compiled else "eager")


Forward = Callable[[Tensor], Tensor]


def _llama(size: Size, work: Work) -> tuple[Forward, nn.Module]:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=work.vocab_size,
            hidden_size=size.dim,
            intermediate_size=size.ffn_dim,
            num_hidden_layers=size.num_layers,
            num_attention_heads=size.num_heads,
            num_key_value_heads=size.num_kv_heads,
            max_position_embeddings=work.context + 1,
            tie_word_embeddings=size.tied,
            use_cache=False,
        )
    )

    def forward(tokens: Tensor) -> Tensor:
        return model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss

    return forward, model


def _plain(size: Size, work: Work) -> tuple[Forward, nn.Module]:
    model = Decoder(size, work)

    def forward(tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return forward, model


class Decoder(nn.Module):
    """The decoder as most people write it: modules, SDPA, rotary positions."""

    def __init__(self, size: Size, work: Work) -> None:
        super().__init__()
        self.embed = nn.Embedding(work.vocab_size, size.dim)
        self.blocks = nn.ModuleList([Block(size) for _ in range(size.num_layers)])
        self.norm = nn.RMSNorm(size.dim)
        self.head = nn.Linear(size.dim, work.vocab_size, bias=False)
        for weight in (self.embed.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)
        if size.tied:
            self.head.weight = self.embed.weight
        C = size.dim // size.num_heads
        angles = torch.outer(torch.arange(work.context), 10_000.0 ** (-torch.arange(0, C, 2) / C))
        self.turns: Tensor
        self.register_buffer("turns", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x = self.embed(tokens)
        turns = self.turns[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, turns)
        return self.head(self.norm(x))


class Block(nn.Module):
    """Attention and SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        D, K, C = size.dim, size.num_kv_heads, size.dim // size.num_heads
        self.size, self.head_dim = size, C
        self.attn_norm, self.ffn_norm = nn.RMSNorm(D), nn.RMSNorm(D)
        self.qkv = nn.Linear(D, D + 2 * K * C, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * size.ffn_dim, bias=False)
        self.down = nn.Linear(size.ffn_dim, D, bias=False)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        """One layer."""
        H, K = self.size.num_heads, self.size.num_kv_heads
        heads = self.qkv(self.attn_norm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split([H, K, K], 1)
        q, k = _rotate(q, turns), _rotate(k, turns)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=H != K)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


def _rotate(x: Tensor, turns: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = turns.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
