"""The native decoding step: `step.cpp` bound to one model's parameters as an `apply`.

Invariant: in a step of few tokens per row each token's result is the same bit for bit, whatever the
number of rows, of keys and of threads, and whatever tokens are computed with it.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import POINTER, Structure, byref, c_double, c_int, c_int64, c_void_p
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from slm_fn.core import native
from slm_fn.core.types import Apply, Params
from slm_fn.lift.quant import Quant, Quant4
from slm_fn.nn import gpt, ops, positions
from slm_fn.nn.cache import InPlaceKVCache
from slm_fn.nn.config import ModelConfig

NUM_LANES = 16
"""Numbers of a vector in step.cpp; rows of matrices are a multiple of it."""

MIN_EAGER_TOKENS = 16
"""Tokens per row from which PyTorch's matrix products are faster."""

SOURCE = Path(__file__).with_name("step.cpp")

_ACTIVATIONS = {"swiglu": 0, "geglu": 1, "gelu": 1, "relu2": 2}
_SIZES = (
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
_MATRICES = ("q", "k", "v", "o", "gate", "up", "down", "head")
_NORMS = ("attn_norm", "attn_norm_bias", "ffn_norm", "ffn_norm_bias", "norm", "norm_bias")
_BLOCK_VECTORS = (
    "q_bias",
    "k_bias",
    "v_bias",
    "o_bias",
    "gate_bias",
    "up_bias",
    "down_bias",
    "q_norm",
    "k_norm",
    "slopes",
)
_FLOAT32, _BFLOAT16, _INT8, _INT4 = range(4)  # `Kind` in step.cpp


def _fields(names: tuple[str, ...], kind: Any) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names]


class _Matrix(Structure):
    """`Matrix` in step.cpp."""

    _fields_ = [
        *_fields(("data", "scale", "zero"), c_void_p),
        *_fields(("kind", "group", "outputs", "inputs"), c_int64),
    ]


class _Model(Structure):
    """`Model` in step.cpp."""

    _fields_ = [
        *_fields(_SIZES, c_int64),
        *_fields(("eps", "scale", "softcap"), c_double),
        *_fields(_MATRICES, _Matrix),
        *_fields((*_NORMS, *_BLOCK_VECTORS), c_void_p),
    ]


class _Call(Structure):
    """`Call` in step.cpp."""

    _fields_ = [
        *_fields(("rows", "rows_per_sequence", "threads"), c_int64),
        *_fields(("stride_layer", "stride_sequence", "stride_position"), c_int64),
        *_fields(("x", "cos", "sin", "lengths", "k", "v", "logits"), c_void_p),
    ]


NativeStep = Callable[[Any, Any], int]
"""`step` of step.cpp: pointers to a `_Model` and a `_Call`; not 0 if there was no memory."""


def load() -> NativeStep:
    """Returns the compiled step, which is compiled first where this machine has not done so yet.

    Raises:
        native.Unavailable: it cannot be compiled or loaded here.
    """
    step = native.load(SOURCE).step
    step.argtypes = [POINTER(_Model), POINTER(_Call)]
    step.restype = c_int
    return step


@dataclass(frozen=True, eq=False)
class NativeApply:
    """A forward pass that runs the native step where it can, and the fallback everywhere else.

    The native step computes few tokens per row, with an `InPlaceKVCache` of the model's dtype, with
    the bound parameters, and without options other than `head`.

    Attributes:
        config: the architecture.
        params: the bound parameters.
        step: the native step.
        fallback: computes everything else.
    """

    config: ModelConfig
    params: Params
    step: NativeStep
    fallback: Apply
    _model: _Model = field(init=False)
    _tensors: list[Tensor] = field(init=False)  # the memory that `_model` points to
    _rope: Tensor = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        model, tensors = describe_model(config, self.params)
        rope = positions.rope_frequencies(
            config.head_dim, config.rope_theta, config.rope_scaling, config.context
        )
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_tensors", tensors)
        object.__setattr__(self, "_rope", rope)

    def __call__(
        self, params: Params, tokens: Tensor, past: Any = None, /, **options: Any
    ) -> tuple[Any, Any]:
        """Runs the model; see `core.types.Apply`.

        Raises:
            ValueError: the cache has another model's shape or layout, or no room for the tokens.
        """
        if not self._supports(params, tokens, past, options):
            return self.fallback(params, tokens, past, **options)
        config = self.config
        num_tokens = tokens.shape[1]
        head = options.get("head", ops.logits)
        positions_BT = past.length[:, None] + torch.arange(num_tokens)
        _check_cache(config, tokens, past, positions_BT)
        x_BTD = gpt.embed_tokens(config, params, tokens, positions_BT).float().contiguous()
        logits_BTV = None
        if head is ops.logits:
            logits_BTV = torch.empty(*tokens.shape, config.vocab_size)
        self._run(x_BTD, past, positions_BT, logits_BTV)
        advanced = past._replace(length=past.length + num_tokens)
        if logits_BTV is not None:
            return ops.apply_softcap(logits_BTV, config.logit_softcap), advanced
        softcap = {"softcap": config.logit_softcap} if config.logit_softcap else {}
        weight = params["embed" if config.tied else "head"]
        return head(weight, x_BTD.to(params["norm"].dtype), **softcap), advanced

    def _supports(
        self,
        params: Params,
        tokens: Tensor,
        past: Any,
        options: dict[str, Any],
    ) -> bool:
        return (
            isinstance(past, InPlaceKVCache)
            and tokens.numel() > 0
            and tokens.shape[1] < MIN_EAGER_TOKENS
            and params is self.params
            and not options.keys() - {"head"}
            and past.k.dtype == params["norm"].dtype
        )

    def _run(
        self,
        x_BTD: Float[Tensor, "B T D"],
        past: InPlaceKVCache,
        positions_BT: Int[Tensor, "B T"],
        logits_BTV: Float[Tensor, "B T V"] | None,
    ) -> None:
        """Computes the layers in place of `x_BTD`, the cache, and the logits if they are given."""
        cos = sin = None
        if self.config.positions == "rope":
            cos, sin = positions.rope_table(positions_BT, self._rope, torch.float32)
        stride_layer, stride_sequence, stride_position = past.k.stride()[:3]
        call = _Call(
            rows=positions_BT.numel(),
            rows_per_sequence=positions_BT.shape[1],
            threads=torch.get_num_threads(),
            stride_layer=stride_layer,
            stride_sequence=stride_sequence,
            stride_position=stride_position,
            x=x_BTD.data_ptr(),
            cos=_pointer(cos),
            sin=_pointer(sin),
            lengths=positions_BT.data_ptr(),
            k=past.k.data_ptr(),
            v=past.v.data_ptr(),
            logits=_pointer(logits_BTV),
        )
        if self.step(byref(self._model), byref(call)):
            raise MemoryError(f"no memory for a step of {positions_BT.numel()} tokens")


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _check_cache(
    config: ModelConfig,
    tokens: Int[Tensor, "B T"],
    past: InPlaceKVCache,
    positions_BT: Int[Tensor, "N T"],
) -> None:
    """Checks what step.cpp does not: that it reads and writes within the cache.

    Raises:
        ValueError: the cache has another model's shape or layout, or no room for the tokens.
    """
    num_layers, num_slots, max_len, *heads = past.k.shape
    if (num_layers, *heads) != (config.num_layers, config.num_kv_heads, config.head_dim):
        raise ValueError(f"KV cache: shape {tuple(past.k.shape)} belongs to another model")
    k, v, _ = past
    is_same_layout = (k.shape, k.dtype, k.device) == (v.shape, v.dtype, v.device)
    is_same_layout = is_same_layout and k.stride() == v.stride()
    if not is_same_layout or k.stride()[3:] != (config.head_dim, 1):
        raise ValueError(
            "KV cache: keys and values must have the same layout, "
            "and each position must be contiguous"
        )
    if not len(positions_BT) == len(tokens) <= num_slots:
        raise ValueError(
            f"KV cache: {len(tokens)} rows of tokens, {len(positions_BT)} lengths, "
            f"{num_slots} slots"
        )
    if int(positions_BT.max()) >= max_len or int(positions_BT.min()) < 0:
        raise ValueError(
            f"KV cache: a slot of {max_len} positions has no room for "
            f"{positions_BT.shape[1]} more tokens"
        )


def describe_model(config: ModelConfig, params: Params) -> tuple[_Model, list[Tensor]]:
    """Returns the model as step.cpp reads it, and the tensors whose memory it points to.

    Matrices keep their dtype; vectors are float32.
    """
    tensors: list[Tensor] = []
    blocks = params["blocks"]
    leaves = {**blocks["attn"], **blocks["ffn"]}
    leaves["head"] = params["embed" if config.tied else "head"]
    if config.positions == "alibi":
        leaves["slopes"] = torch.tensor(positions.alibi_slopes(config.num_heads))
    for name in _NORMS:
        holder = blocks if name.startswith(("attn", "ffn")) else params
        leaves[name] = holder.get(name)
    matrices = {name: _describe_matrix(leaves.get(name), tensors) for name in _MATRICES}
    vectors = {name: _float_pointer(leaves.get(name), tensors) for name in _NORMS + _BLOCK_VECTORS}
    model = _Model(
        layers=config.num_layers,
        dim=config.dim,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        channels=config.head_dim,
        hidden=config.ffn_dim,
        activation=_ACTIVATIONS[config.ffn],
        layer_norm=int(config.norm == "layer"),
        window=config.window,
        cache_kind=_BFLOAT16 if params["norm"].dtype == torch.bfloat16 else _FLOAT32,
        eps=config.norm_eps,
        scale=config.head_dim**-0.5 * positions.attention_factor(config.rope_scaling) ** 2,
        softcap=config.attn_softcap,
        **matrices,
        **vectors,
    )
    return model, tensors


def _float_pointer(vector: Tensor | None, tensors: list[Tensor]) -> int | None:
    """The address of a vector in float32, which is added to `tensors`."""
    if vector is None:
        return None
    tensors.append(vector.detach().float().contiguous())
    return tensors[-1].data_ptr()


def _describe_matrix(leaf: Any, tensors: list[Tensor]) -> _Matrix:
    """A matrix as step.cpp reads it; its tensors are added to `tensors`."""
    if leaf is None:
        return _Matrix()
    is_quantized = isinstance(leaf, Quant | Quant4)
    data = (leaf.q if is_quantized else leaf.detach()).contiguous()
    tensors.append(data)
    matrix = _Matrix(data=data.data_ptr(), outputs=data.shape[-2], inputs=data.shape[-1])
    if isinstance(leaf, Quant):
        matrix.kind = _INT8
        matrix.scale = _float_pointer(leaf.scale, tensors)
    elif isinstance(leaf, Quant4):
        matrix.kind = _INT4
        matrix.inputs *= 2  # two numbers per byte
        matrix.group = matrix.inputs // leaf.scale.shape[-1]
        matrix.scale = _float_pointer(leaf.scale, tensors)
        matrix.zero = _float_pointer(leaf.zero, tensors)
    else:
        matrix.kind = _BFLOAT16 if data.dtype == torch.bfloat16 else _FLOAT32
    return matrix
