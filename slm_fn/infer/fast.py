"""The fastest `apply` for decoding here: compiled C++ for a step of few rows on a CPU, or the eager one, and why.

Invariant: it gives what `gpt.apply` gives, within rounding; of a step of few tokens a row, each token's result is its
own bit for bit, whatever the number of rows, of keys and of threads, and of tokens that are read with it.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_double, c_int, c_int64, c_void_p
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from slm_fn.core import native, tree
from slm_fn.core.types import Apply, Params
from slm_fn.lift.quant import Quant, Quant4
from slm_fn.nn import gpt, ops, positions
from slm_fn.nn.cache import Slots
from slm_fn.nn.config import ModelConfig

LANES = 16  # numbers of a vector in step.cpp: rows of matrices are whole vectors
MANY = 16  # tokens of a row from which matrix products of PyTorch are faster
ACTIVATIONS = {"swiglu": 0, "geglu": 1, "gelu": 1, "relu2": 2}
VECTORS = ("attn_norm", "attn_norm_bias", "ffn_norm", "ffn_norm_bias", "norm", "norm_bias")
SMALL = ("q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias", "q_norm", "k_norm", "slopes")
MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head")


class Decoder(NamedTuple):
    """An `apply` for one model's parameters, the engine behind it, and why that was taken."""

    apply: Apply
    engine: Literal["native", "eager"]
    reason: str


class _Matrix(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("data", "scale", "zero")),
        *((name, c_int64) for name in ("kind", "group", "outputs", "inputs")),
    ]


_COUNTS = (
    "layers",
    "dim",
    "heads",
    "kv_heads",
    "channels",
    "hidden",
    "activation",
    "layer_norm",
    "window",
    "cache_kind",
)


class _Model(Structure):
    _fields_ = [
        *((name, c_int64) for name in _COUNTS),
        *((name, c_double) for name in ("eps", "scale", "softcap")),
        *((name, _Matrix) for name in MATRICES),
        *((name, c_void_p) for name in (*VECTORS, *SMALL)),
    ]


class _Call(Structure):
    _fields_ = [
        *((name, c_int64) for name in ("rows", "each", "threads", "stride_layer", "stride_text", "stride_place")),
        *((name, c_void_p) for name in ("x", "cos", "sin", "lengths", "k", "v", "logits")),
    ]


def choose(config: ModelConfig, params: Params, asked: str = "auto") -> Decoder:
    """The `apply` to decode these parameters with.

    Args:
        asked: `native`, `eager`, or `auto`: native where it can be had. It takes some seconds to compile the first
            time on a machine, and none after.

    Raises:
        ValueError: no such engine, or `native` cannot be had.

    Example:
        >>> config = ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> choose(config, gpt.init(config, key=0), "eager").reason
        'as asked'
    """
    if asked not in ("auto", "native", "eager"):
        raise ValueError(f"decode engine {asked!r} is not one of auto, native, eager")
    plain = partial(gpt.apply, config)
    if asked == "eager":
        return Decoder(plain, "eager", "as asked")
    lacking = _lacks(config, params)
    if not lacking:
        try:
            library = native.load(Path(__file__).with_name("step.cpp"))
        except native.Unavailable as error:
            lacking = str(error)
    if lacking and asked == "native":
        raise ValueError(f"decode engine native cannot be had: {lacking}; take auto or eager")
    if lacking:
        return Decoder(plain, "eager", lacking)
    return Decoder(_bind(config, params, library.step, plain), "native", "a step of few rows is one call on this CPU")


def _lacks(config: ModelConfig, params: Params) -> str:
    """Why the C++ step cannot serve this model, or nothing."""
    leaves = tree.leaves(params)
    if any(leaf.device.type != "cpu" for leaf in leaves):
        return "the model is not on a CPU"
    if config.ffn == "dual":
        return "the dual feed-forward has no native step"
    if any(size % LANES for size in (config.dim, config.ffn_dim)) or config.head_dim > 1024:
        return f"width and feed-forward are no multiples of {LANES}"
    held = {leaf.dtype for leaf in tree.flat(params).values() if isinstance(leaf, Tensor)}
    if len(held) > 1 or not held <= {torch.float32, torch.bfloat16}:
        return "weights are neither all float32 nor all bfloat16"
    groups = [leaf for leaf in tree.flat(params["blocks"]).values() if isinstance(leaf, Quant4)]
    sizes = {2 * leaf.q.shape[-1] // leaf.scale.shape[-1] for leaf in groups}
    if any(size < 2 * LANES or size & (size - 1) for size in sizes):
        return f"groups of 4 bits are no powers of two from {2 * LANES}"
    return ""


def _bind(config: ModelConfig, params: Params, step: Callable[..., Any], plain: Apply) -> Apply:
    step.argtypes, step.restype = [POINTER(_Model), POINTER(_Call)], c_int  # type: ignore[attr-defined]
    described, kept = _describe(config, params)
    table = positions.frequencies(config.head_dim, config.rope_theta, config.rope_scaling, config.context)
    weight = params["embed" if config.tied else "head"]

    def apply(given: Params, tokens: Tensor, past: Any = None, **asked: Any) -> tuple[Any, Any]:
        few = isinstance(past, Slots) and tokens.shape[1] < MANY
        if (
            not few
            or not tokens.numel()
            or given is not params
            or asked.keys() - {"head"}
            or past.k.dtype != params["norm"].dtype
        ):
            return plain(given, tokens, past, **asked)
        head = asked.get("head", ops.logits)
        places = past.length[:, None] + torch.arange(tokens.shape[1])
        _check(config, tokens, past, places)
        x = gpt.enter(config, params, tokens, places).float().contiguous()
        turns = positions.rope_table(places, table, torch.float32) if config.positions == "rope" else None
        logits = torch.empty(*tokens.shape, config.vocab_size) if head is ops.logits else None
        _run(step, described, x, turns, past, places, logits)
        softcap = {"softcap": config.logit_softcap} if config.logit_softcap else {}
        if logits is None:
            out = head(weight, x.to(params["norm"].dtype), **softcap)
        else:
            out = ops.capped(logits, config.logit_softcap)
        return out, past._replace(length=past.length + tokens.shape[1])

    apply.kept = kept  # type: ignore[attr-defined]  # what the pointers point at lives as long as who reads it
    return apply


def rows_are_alike(apply: Apply) -> bool:
    """Whether a step of this `apply` gives each token the same bits whatever the number of rows, tokens and keys."""
    return hasattr(apply, "kept")


def _check(config: ModelConfig, tokens: Tensor, past: Slots, places: Tensor) -> None:
    """C++ asks no more where it reads and writes.

    Raises:
        ValueError: the slots are another model's, do not lie as they must, or have no room.
    """
    num_layers, num_slots, size, *heads = past.k.shape
    if (num_layers, *heads) != (config.num_layers, config.num_kv_heads, config.head_dim):
        raise ValueError(f"slots: of shape {tuple(past.k.shape)} are those of another model")
    alike = all(a == b for a, b in ((getattr(x, at) for x in past[:2]) for at in ("shape", "dtype", "device")))
    if not alike or past.k.stride() != past.v.stride() or past.k.stride()[3:] != (config.head_dim, 1):
        raise ValueError("slots: keys and values must lie alike, each place in one piece")
    if not len(places) == len(tokens) <= num_slots:
        raise ValueError(f"slots: {len(tokens)} rows of tokens, {len(places)} lengths, {num_slots} slots")
    if int(places.max()) >= size or int(places.min()) < 0:
        raise ValueError(f"slots: a row has no room for {places.shape[1]} tokens more in {size} places")


def _run(
    step: Callable[..., Any],
    described: _Model,
    x: Tensor,
    turns: tuple[Tensor, Tensor] | None,
    past: Slots,
    places: Tensor,
    logits: Tensor | None,
) -> None:
    call = _Call(
        places.numel(), places.shape[1], torch.get_num_threads(), *past.k.stride()[:3],
        x.data_ptr(), *((None, None) if turns is None else (half.data_ptr() for half in turns)),
        places.data_ptr(), past.k.data_ptr(), past.v.data_ptr(), None if logits is None else logits.data_ptr(),
    )  # fmt: skip
    if step(byref(described), byref(call)):
        raise MemoryError(f"no memory for a step of {places.numel()} tokens")


def _describe(config: ModelConfig, params: Params) -> tuple[_Model, list[Tensor]]:
    """The model as C++ reads it, and the tensors that it points at: matrices as they lie, vectors in float32."""
    blocks, kept = params["blocks"], []

    def floats(x: Tensor | None) -> int | None:
        if x is None:
            return None
        kept.append(x.detach().float().contiguous())
        return kept[-1].data_ptr()

    def matrix(leaf: Any) -> _Matrix:
        if leaf is None:
            return _Matrix()
        data = leaf.q if isinstance(leaf, Quant | Quant4) else leaf.detach()
        kept.append(data.contiguous())
        told = {"data": kept[-1].data_ptr(), "outputs": data.shape[-2], "inputs": data.shape[-1]}
        if isinstance(leaf, Quant):
            return _Matrix(**told, kind=2, scale=floats(leaf.scale))
        if isinstance(leaf, Quant4):
            told["inputs"] *= 2
            group = told["inputs"] // leaf.scale.shape[-1]
            return _Matrix(**told, kind=3, group=group, scale=floats(leaf.scale), zero=floats(leaf.zero))
        return _Matrix(**told, kind=int(data.dtype == torch.bfloat16))

    inner = {**blocks["attn"], **blocks["ffn"]}
    if config.positions == "alibi":
        inner["slopes"] = torch.tensor(positions.alibi_slopes(config.num_heads))
    around = {name: (blocks if name.startswith(("attn", "ffn")) else params).get(name) for name in VECTORS}
    inner["head"] = params["embed" if config.tied else "head"]
    described = _Model(
        layers=config.num_layers,
        dim=config.dim,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        channels=config.head_dim,
        hidden=config.ffn_dim,
        activation=ACTIVATIONS[config.ffn],
        layer_norm=int(config.norm == "layer"),
        window=config.window,
        cache_kind=int(params["norm"].dtype == torch.bfloat16),
        eps=config.norm_eps,
        scale=config.head_dim**-0.5 * positions.attention_factor(config.rope_scaling) ** 2,
        softcap=config.attn_softcap,
        **{name: matrix(inner.get(name)) for name in MATRICES},
        **{name: floats(leaf) for name, leaf in around.items()},
        **{name: floats(inner.get(name)) for name in SMALL},
    )
    return described, kept
