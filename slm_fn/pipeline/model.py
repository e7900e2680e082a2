"""The model folder: weights, config.json, tokenizer.json, generation.json, and how a path names one.

Invariant: a model folder is all that sampling, serving and further training need; no flag repeats what it says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import torch

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.types import Apply, Params
from slm_fn.infer import fast
from slm_fn.infer.fast import Decoder
from slm_fn.infer.sample import SampleConfig
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import gpt
from slm_fn.nn.cache import KVCache
from slm_fn.nn.gpt import ModelConfig
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.train import checkpoint

T = TypeVar("T")
CONFIG, TOKENIZER, GENERATION = "config.json", "tokenizer.json", "generation.json"


class Generation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a model is talked to: the chat template, the control tokens that end a reply, sampling defaults."""

    template: ChatTemplate = ChatTemplate()
    stop: tuple[str, ...] = ("<|end|>", "<|endoftext|>")
    sampling: SampleConfig = SampleConfig()


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`config.json`: the architecture, which tokenizer it was trained with, and how its weights are quantised."""

    model: ModelConfig
    tokenizer_fingerprint: str
    format: str = "slm_fn"
    version: int = 1
    quant: QuantConfig | None = None


class Model(NamedTuple):
    """A model folder in memory; `decoder` is how its parameters are decoded with, where it was asked for."""

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    generation: Generation
    decoder: Decoder | None = None

    @property
    def apply(self) -> Apply:
        """The forward pass of this architecture; hand it `params`, tokens and a cache."""
        return partial(gpt.apply, self.config) if self.decoder is None else self.decoder.apply

    @property
    def init_cache(self) -> Callable[[Params, int, int], KVCache]:
        """`(params, rows, size)` to an empty cache of this architecture."""
        return partial(gpt.init_cache, self.config)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The control tokens that end a reply, as ids."""
        return frozenset(self.tokenizer.special(name) for name in self.generation.stop)


def describe(
    config: ModelConfig, tokenizer: Tokenizer, generation: Generation, how: QuantConfig | None = None
) -> dict[str, bytes]:
    """The files that make a folder of weights a model folder."""
    return {
        CONFIG: _json(Description(config, tokenizer.fingerprint, quant=how)),
        TOKENIZER: tokenizer.to_json().encode(),
        GENERATION: _json(generation),
    }


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def locate(path: Path | str) -> Path:
    """The folder with the weights that a path means: a model or checkpoint folder, or a run's latest checkpoint.

    Raises:
        FileNotFoundError: nothing there, or a run without a checkpoint.
        ValueError: a folder that is neither.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model, run or checkpoint folder")
    if (path / CONFIG).is_file():
        return path
    if (path / "checkpoints").is_dir():
        place, passed = checkpoint.newest(path)
        if place is None:
            raise FileNotFoundError(
                f"{path}: this run has no whole checkpoint yet{''.join(f'; {line}' for line in passed)}"
            )
        return place
    raise ValueError(f"{path}: neither a model folder ({CONFIG} is missing) nor a run folder (no checkpoints/ inside)")


def describe_at(path: Path | str) -> Description:
    """What a model, a run or a checkpoint folder says of itself, without its weights.

    Raises:
        FileNotFoundError, ValueError: as `locate`, or its `config.json` says something else.
    """
    return read(locate(path) / CONFIG, Description)


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    raw: bool = False,
    dtype: torch.dtype | None = None,
    quantize: QuantConfig | str | None = None,
    decode: str | None = None,
) -> Model:
    """Read a model, a run or a checkpoint folder onto a device.

    Args:
        raw: the weights as trained, not their running average, where both are there.
        dtype: of the weights; None takes the one this device multiplies fastest. Training wants float32.
        quantize: the matrices to few bits (`int8`, `int4`), unless the folder's are so already, in just that way.
        decode: the engine of `apply` (`fast.choose`) for who generates; None is the plain one.

    Raises:
        FileNotFoundError, ValueError: one line that says what is missing, broken or does not belong.
    """
    place = locate(path)
    if (place / checkpoint.STATE).is_file():
        checkpoint.check(place)
    told = read(place / CONFIG, Description)
    tokenizer = Tokenizer.load(place / TOKENIZER)
    if tokenizer.fingerprint != told.tokenizer_fingerprint:
        raise ValueError(
            f"{place / TOKENIZER}: not the tokenizer this model was trained with; restore the original file"
        )
    quantize = quant.NAMED[quantize] if isinstance(quantize, str) else quantize
    if quantize is not None and told.quant not in (None, quantize):
        raise ValueError(f"{place}: the weights have {told.quant.bits} bits already; take the original for others")
    params = checkpoint.load_weights(place, _like(gpt.check(told.model), told.quant), raw)
    if quantize is not None and told.quant is None:
        params = quant.quantize(params, quantize, gpt.matrices(told.model).__contains__)
    target = devices.resolve(device) if isinstance(device, str) else device
    params = tree.to_device(tree.cast(params, dtype or devices.precision(target)), target)
    decoder = None if decode is None else fast.choose(told.model, params, decode)
    return Model(told.model, params, tokenizer, read(place / GENERATION, Generation), decoder)


def load_to_train(path: Path | str, device: torch.device | str) -> Model:
    """`load` for who trains: in float32.

    Raises:
        FileNotFoundError, ValueError: as `load`; or the weights are quantised, and take no steps.
    """
    if describe_at(path).quant is not None:
        raise ValueError(f"{path}: the weights are quantised, which cannot be trained; take the original")
    return load(path, device, dtype=torch.float32)


def _like(config: ModelConfig, how: QuantConfig | None) -> Params:
    """Parameters of the right shapes and dtypes, with no numbers in them yet."""
    like = tree.update_in(gpt.spec(config), lambda _, weight: torch.empty(weight.shape, device="meta"))
    if how is not None:
        like = quant.quantize(like, how, gpt.matrices(config).__contains__)
    return tree.map(lambda x: torch.empty_like(x, device="cpu"), like)


def read(path: Path, kind: type[T]) -> T:
    """Read one of a model folder's JSON files.

    Raises:
        FileNotFoundError, ValueError: it is missing, or says something else.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: missing; a model folder holds {CONFIG}, {TOKENIZER} and {GENERATION}"
        ) from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
