"""What a decoder is made of: every parameter by path, as data; sizes, count, matrices and flops read it.

Invariant: `spec` is the one description of the parameters; init, count, flops and the optimizer's choices read it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from slm_fn.core import tree
from slm_fn.core.types import Path
from slm_fn.nn.config import ModelConfig, check


class Weight(NamedTuple):
    """One parameter: its shape, the standard deviation it starts with (None: ones), whether it is a block matrix."""

    shape: tuple[int, ...]
    std: float | None
    matrix: bool = False


def _embed_std(config: ModelConfig) -> float:
    """1 where the head is another matrix; tied, 0.25 / sqrt(D), less where a fresh model would bet on its own input.

    Tied, a token's logit for itself starts at std * D while all others are near zero; held below ln(1 + V / 20) it
    takes at most a twentieth of the probability, and the first loss stays within 2 % of ln V.
    """
    if not config.tied:
        return 1.0
    return min(0.25, math.log1p(config.vocab_size / 20) * config.dim**-0.5) * config.dim**-0.5


def spec(config: ModelConfig) -> dict[str, Any]:
    """Every parameter by path. Matrices that write to the residual stream are zero: a fresh block is the identity.

    Learned positions start at a quarter of the embedding, so that a place does not drown the token on it.

    References: arXiv 2203.03466 (zero-initialised outputs), 1608.05859 (tied embedding).
    """
    check(config)
    V, D = config.vocab_size, config.dim
    std = _embed_std(config)
    learned = {"positions": Weight((config.context, D), std / 4)} if config.positions == "learned" else {}
    return {
        "embed": Weight((V, D), std),
        **learned,
        "blocks": {
            **_norm(config, "attn_norm"),
            "attn": _attention(config),
            **_norm(config, "ffn_norm"),
            "ffn": _ffn(config),
        },
        **_norm(config, "norm", stacked=False),
        **({} if config.tied else {"head": Weight((V, D), 0.25 * D**-0.5)}),
    }


def _dense(config: ModelConfig, name: str, out: int, into: int, bias: bool, zero: bool = False) -> dict[str, Weight]:
    L = config.num_layers
    found = {name: Weight((L, out, into), 0.0 if zero else into**-0.5, matrix=True)}
    return {**found, f"{name}_bias": Weight((L, out), 0.0)} if bias else found


def _norm(config: ModelConfig, name: str, stacked: bool = True) -> dict[str, Weight]:
    shape = (config.num_layers, config.dim) if stacked else (config.dim,)
    shifted = config.norm == "layer" and config.biases == "all"
    return {name: Weight(shape, None), **({f"{name}_bias": Weight(shape, 0.0)} if shifted else {})}


def _attention(config: ModelConfig) -> dict[str, Weight]:
    L, D, C = config.num_layers, config.dim, config.head_dim
    KC, bias = config.num_kv_heads * C, config.biases != "none"
    return {
        **_dense(config, "q", D, D, bias),
        **_dense(config, "k", KC, D, bias),
        **_dense(config, "v", KC, D, bias),
        **({"q_norm": Weight((L, C), None), "k_norm": Weight((L, C), None)} if config.qk_norm else {}),
        **_dense(config, "o", D, D, config.biases == "all", zero=True),
    }


def _ffn(config: ModelConfig) -> dict[str, Any]:
    L, D, F, bias = config.num_layers, config.dim, config.ffn_dim, config.biases == "all"

    def path(hidden: int, gated: bool) -> dict[str, Weight]:
        return {
            **(_dense(config, "gate", hidden, D, bias) if gated else {}),
            **_dense(config, "up", hidden, D, bias),
            **_dense(config, "down", D, hidden, bias, zero=True),
        }

    if config.ffn == "dual":
        # The router's two rows are no matrix to decay or to orthogonalise: only their difference counts.
        router = Weight((L, 2, D), D**-0.5)
        return {"router": router, "lite": path(config.lite_dim, True), "expert": path(F, True)}
    return path(F, config.ffn in ("swiglu", "geglu"))


def matrices(config: ModelConfig) -> frozenset[Path]:
    """Paths of the block matrices: what weight decay and Muon act on. No embedding, head, norm, bias or router."""
    return frozenset(path for path, weight in tree.flat(spec(config)).items() if weight.matrix)


def sizes(config: ModelConfig) -> dict[Path, int]:
    """How many numbers every parameter holds, by path."""
    return {path: math.prod(weight.shape) for path, weight in tree.flat(spec(config)).items()}


def count(config: ModelConfig) -> int:
    """Number of parameters."""
    return sum(sizes(config).values())


def flops(config: ModelConfig, length: int) -> int:
    """Operations to train on one token in a row of `length`: 6 per weight that multiplies it, 12 L D a key it sees.

    That is T / 2 keys on average, W - W^2 / 2T with a window of W. A dual feed-forward that drops sends the expert no
    more than its capacity; one that does not computes both paths for every token.

    References: arXiv 2204.02311, appendix B (causal attention counted as half).
    """
    window = min(config.window or length, length)
    attend = 6 * config.num_layers * config.dim * window * (2 * length - window) // length
    reach = config.dual.capacity(length) / length if config.ffn == "dual" and config.dual.drop else 1
    kept = matrices(config)
    used = sum(
        size * (reach if path.startswith("blocks/ffn/expert") else 1)
        for path, size in sizes(config).items()
        if path in kept or path.endswith("/router")
    )
    return round(6 * (used + config.vocab_size * config.dim)) + attend
