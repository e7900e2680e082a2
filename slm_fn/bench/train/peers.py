"""Other trainers of a model of the same size: transformers' Llama, and a plain compiled nn.Module.

Invariant: a peer's process imports nothing of this package that would add to its memory or slow it
down.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slm_fn.bench.train.timing import StepTiming, StepWorkload, random_tokens, time_steps

KINDS = ("transformers", "plain")
ROPE_BASE = 10_000.0
Forward = Callable[[Tensor], Tensor]
"""Token ids (B, T+1) -> the mean loss, a scalar."""


class LlamaShape(NamedTuple):
    """The sizes of a decoder in Llama's layout.

    Attributes:
        tied: whether the output head is the embedding matrix.
    """

    dim: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    ffn_dim: int
    tied: bool


class TrainPeer(NamedTuple):
    """A trainer to compare with: AdamW with gradient clipping, as `slm pretrain` has.

    Attributes:
        kind: one of `KINDS`.
        precision: `float32`, or `bfloat16` under autocast.
        compiled: whether `torch.compile` compiles the forward pass.
    """

    kind: str
    precision: str
    compiled: bool

    @property
    def name(self) -> str:
        """The name in reports, such as `transformers bfloat16 compiled`."""
        return f"{self.kind} {self.precision} {'compiled' if self.compiled else 'eager'}"


def select(
    kind: str,
    precision: str = "",
    compiled: bool | None = None,
    default_precision: str = "bfloat16",
) -> list[TrainPeer]:
    """Returns the peers of a kind; a setting that is left open is tried in each usual way.

    Args:
        kind: one of `KINDS`.
        precision: of the peer; empty leaves it open.
        compiled: whether the peer is compiled; None leaves it open.
        default_precision: the precision of slm's own training. For transformers, float32 is
            measured as well.

    Raises:
        ValueError: the kind is unknown, or transformers is not installed.

    Example:
        >>> [peer.name for peer in select("plain")]
        ['plain bfloat16 compiled']
    """
    if kind not in KINDS:
        raise ValueError(f"--peer {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "transformers" and find_spec("transformers") is None:
        raise ValueError(
            "--peer transformers: transformers is not installed: pip install transformers"
        )
    is_open = not precision and compiled is None
    if kind == "plain" or not is_open:
        is_compiled = kind == "plain" if compiled is None else compiled
        return [TrainPeer(kind, precision or default_precision, is_compiled)]
    peers = [TrainPeer(kind, "float32", False)]
    if default_precision == "bfloat16":
        peers += [TrainPeer(kind, "bfloat16", False), TrainPeer(kind, "bfloat16", True)]
    return peers


def run(peer: TrainPeer, shape: LlamaShape, workload: StepWorkload) -> StepTiming:
    """Trains a peer in this process and returns its timing."""
    device = torch.device(workload.device)
    torch.manual_seed(0)
    make_model = _make_llama if peer.kind == "transformers" else _make_plain
    forward, model = make_model(shape, workload)
    model.to(device).train()
    if peer.compiled:
        forward = torch.compile(forward)
    step = _make_step(peer, forward, model, device)

    def batches() -> Iterator[Tensor]:
        for position in range(workload.num_warmup_steps + workload.num_steps):
            yield torch.from_numpy(random_tokens(workload, position)).to(device)

    timing = time_steps(step, batches(), workload)
    return timing._replace(engine="compile" if peer.compiled else "eager")


def _make_step(
    peer: TrainPeer, forward: Forward, model: nn.Module, device: torch.device
) -> Forward:
    fused = {"fused": True} if peer.kind == "plain" else {}
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, **fused
    )
    in_precision: Any = contextlib.nullcontext()
    if peer.precision == "bfloat16":
        in_precision = torch.autocast(device.type, dtype=torch.bfloat16)

    def step(tokens: Tensor) -> Tensor:
        with in_precision:
            loss = forward(tokens)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def _make_llama(shape: LlamaShape, workload: StepWorkload) -> tuple[Forward, nn.Module]:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=workload.vocab_size,
            hidden_size=shape.dim,
            intermediate_size=shape.ffn_dim,
            num_hidden_layers=shape.num_layers,
            num_attention_heads=shape.num_heads,
            num_key_value_heads=shape.num_kv_heads,
            max_position_embeddings=workload.context + 1,
            tie_word_embeddings=shape.tied,
            use_cache=False,
        )
    )

    def forward(tokens: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=tokens[:, :-1], labels=tokens[:, :-1]).loss
        return loss

    return forward, model


def _make_plain(shape: LlamaShape, workload: StepWorkload) -> tuple[Forward, nn.Module]:
    model = PlainDecoder(shape, workload)

    def forward(tokens: Tensor) -> Tensor:
        logits = model(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    return forward, model


class PlainDecoder(nn.Module):
    """A decoder as most people write it: modules, SDPA, rotary position embeddings."""

    def __init__(self, shape: LlamaShape, workload: StepWorkload) -> None:
        super().__init__()
        self.embed = nn.Embedding(workload.vocab_size, shape.dim)
        self.blocks = nn.ModuleList([PlainBlock(shape) for _ in range(shape.num_layers)])
        self.norm = nn.RMSNorm(shape.dim)
        self.head = nn.Linear(shape.dim, workload.vocab_size, bias=False)
        for weight in (self.embed.weight, self.head.weight):
            nn.init.normal_(weight, std=0.02)
        if shape.tied:
            self.head.weight = self.embed.weight
        C = shape.dim // shape.num_heads
        frequencies = ROPE_BASE ** (-torch.arange(0, C, 2) / C)
        angles = torch.outer(torch.arange(workload.context), frequencies)
        self.cos_sin: Tensor
        self.register_buffer("cos_sin", torch.stack([angles.cos(), angles.sin()]), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Returns the logits (B, T, V) of token ids (B, T)."""
        x = self.embed(tokens)
        cos_sin = self.cos_sin[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x, cos_sin)
        logits: Tensor = self.head(self.norm(x))
        return logits


class PlainBlock(nn.Module):
    """One layer: causal attention and SwiGLU, each after an RMSNorm."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        D, K = shape.dim, shape.num_kv_heads
        C = D // shape.num_heads
        self.shape = shape
        self.head_dim = C
        self.attn_norm = nn.RMSNorm(D)
        self.ffn_norm = nn.RMSNorm(D)
        self.qkv = nn.Linear(D, D + 2 * K * C, bias=False)
        self.out = nn.Linear(D, D, bias=False)
        self.gate_up = nn.Linear(D, 2 * shape.ffn_dim, bias=False)
        self.down = nn.Linear(shape.ffn_dim, D, bias=False)

    def forward(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        """Returns hidden states (B, T, D) after this layer.

        Args:
            x: hidden states (B, T, D).
            cos_sin: cosines and sines of the rotary angles, (2, T, C/2).
        """
        H, K = self.shape.num_heads, self.shape.num_kv_heads
        qkv_BHTC = self.qkv(self.attn_norm(x)).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q_BHTC, k_BKTC, v_BKTC = qkv_BHTC.split([H, K, K], 1)
        q_BHTC = _rotate(q_BHTC, cos_sin)
        k_BKTC = _rotate(k_BKTC, cos_sin)
        out_BHTC = F.scaled_dot_product_attention(
            q_BHTC, k_BKTC, v_BKTC, is_causal=True, enable_gqa=H != K
        )
        x = x + self.out(out_BHTC.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, -1)
        ffn_out: Tensor = self.down(F.silu(gate) * up)
        return x + ffn_out


def _rotate(x: Tensor, cos_sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    cos, sin = cos_sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
