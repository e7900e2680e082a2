"""The model folder: its files, how a path names one, and how it is loaded.

Invariant: sampling, serving and further training need nothing but the folder; no flag repeats what
it states.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import torch

from slm_fn.core import device as devices
from slm_fn.core import tree
from slm_fn.core.types import Apply, Params
from slm_fn.infer import decoder as decoders
from slm_fn.infer.decoder import Decoder, InitCache
from slm_fn.infer.sampling import SampleConfig
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.train import checkpoint

T = TypeVar("T")

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
GENERATION = "generation.json"
FORMAT = "slm_fn"
VERSION = 1


class GenerationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`generation.json`.

    The chat template, the special tokens that end a reply, sampling defaults.
    """

    template: ChatTemplate = ChatTemplate()
    stop: tuple[str, ...] = ("<|end|>", "<|endoftext|>")
    sampling: SampleConfig = SampleConfig()


class ModelMetadata(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`config.json`.

    The architecture, the tokenizer of training, and how the weights are quantised.
    """

    model: ModelConfig
    tokenizer_fingerprint: str
    format: str = FORMAT
    version: int = VERSION
    quant: QuantConfig | None = None


class Model(NamedTuple):
    """A model folder in memory.

    Attributes:
        config: the architecture.
        params: the weights.
        tokenizer: its tokenizer.
        generation: chat template, stop tokens and sampling defaults.
        selected_decoder: set where the model was loaded to generate.
    """

    config: ModelConfig
    params: Params
    tokenizer: Tokenizer
    generation: GenerationConfig
    selected_decoder: Decoder | None = None

    @property
    def apply(self) -> Apply:
        """The forward pass: the selected decoder's, or the plain one of this architecture."""
        if self.selected_decoder is not None:
            return self.selected_decoder.apply
        return partial(gpt.apply, self.config)

    @property
    def init_cache(self) -> InitCache:
        """`(params, batch size, number of positions)` to an empty cache of this architecture."""
        return partial(gpt.init_cache, self.config)

    @property
    def decoder(self) -> Decoder:
        """The decoder of the engine: the selected one, or one of the plain forward pass."""
        selected = self.selected_decoder
        if selected is not None and selected.params is self.params:
            return selected
        return Decoder(self.apply, self.init_cache, self.params)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids of the special tokens that end a reply."""
        return frozenset(self.tokenizer.special_id(name) for name in self.generation.stop)


def metadata_files(
    config: ModelConfig,
    tokenizer: Tokenizer,
    generation: GenerationConfig,
    quant_config: QuantConfig | None = None,
) -> dict[str, bytes]:
    """The files beside the weights of a model folder, by name."""
    metadata = ModelMetadata(config, tokenizer.fingerprint, quant=quant_config)
    return {
        CONFIG: _json(metadata),
        TOKENIZER: tokenizer.to_json().encode(),
        GENERATION: _json(generation),
    }


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def locate(path: Path | str) -> Path:
    """The folder with the weights: a model or checkpoint folder, or a run's latest checkpoint.

    Raises:
        FileNotFoundError: nothing is there, or the run has no complete checkpoint.
        ValueError: the folder is neither a model folder nor a run folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such model, run or checkpoint folder")
    if (path / CONFIG).is_file():
        return path
    if not (path / "checkpoints").is_dir():
        raise ValueError(
            f"{path}: neither a model folder ({CONFIG} is missing) "
            "nor a run folder (no checkpoints/ inside)"
        )
    newest, rejected = checkpoint.find_newest(path)
    if newest is None:
        reasons = "".join(f"; {line}" for line in rejected)
        raise FileNotFoundError(f"{path}: this run has no complete checkpoint yet{reasons}")
    return newest


def load_metadata(path: Path | str) -> ModelMetadata:
    """`config.json` of a model, run or checkpoint folder.

    Raises:
        FileNotFoundError: as `locate`, or the file is missing.
        ValueError: as `locate`, or the file is not a model's metadata, or of a newer format.
    """
    file = locate(path) / CONFIG
    metadata = read_json(file, ModelMetadata)
    if metadata.format != FORMAT:
        raise ValueError(f"{file}: its format is {metadata.format!r}, expected {FORMAT!r}")
    if not 1 <= metadata.version <= VERSION:
        raise ValueError(
            f"{file}: format version {metadata.version}, "
            f"this slm_fn reads up to {VERSION}; upgrade slm_fn"
        )
    return metadata


def load(
    path: Path | str,
    device: torch.device | str = "cpu",
    raw: bool = False,
    dtype: torch.dtype | None = None,
    quantize: QuantConfig | str | None = None,
    decode: str | None = None,
) -> Model:
    """Load a model, run or checkpoint folder onto a device.

    Args:
        raw: load the weights as trained, not their running average, where the folder holds both.
        dtype: of the weights; None takes the fastest dtype of the device. Training wants float32.
        quantize: `int8`, `int4` or a config, by which the matrices are quantised. Weights that are
            already quantised must be so in the same way.
        decode: the decoding engine (`decoder.select`) for a model that generates; None takes the
            plain `apply`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is broken or belongs to another model.
    """
    folder = locate(path)
    if (folder / checkpoint.STATE).is_file():
        checkpoint.verify(folder)
    metadata = load_metadata(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if tokenizer.fingerprint != metadata.tokenizer_fingerprint:
        raise ValueError(
            f"{folder / TOKENIZER}: not the tokenizer this model was trained with; "
            "restore the original file"
        )
    params = _load_params(folder, metadata, raw, quantize)
    target = devices.resolve(device) if isinstance(device, str) else device
    params = tree.to_device(tree.cast(params, dtype or devices.matmul_dtype(target)), target)
    decoder = None if decode is None else decoders.select(metadata.model, params, decode)
    generation = read_json(folder / GENERATION, GenerationConfig)
    return Model(metadata.model, params, tokenizer, generation, decoder)


def _load_params(
    folder: Path, metadata: ModelMetadata, raw: bool, quantize: QuantConfig | str | None
) -> Params:
    """The weights, quantised as requested.

    A conflicting request is refused before they are read.
    """
    wanted = quant.PRESETS[quantize] if isinstance(quantize, str) else quantize
    stored = metadata.quant
    if wanted is not None and stored is not None and stored != wanted:
        raise ValueError(
            f"{folder}: the weights have {stored.bits} bits already; "
            "use the original model for others"
        )
    like = _empty_params(gpt.check(metadata.model), stored)
    params = checkpoint.load_weights(folder, like, raw)
    if wanted is not None and stored is None:
        params = quant.quantize(params, wanted, gpt.matrix_paths(metadata.model).__contains__)
    return params


def load_for_training(path: Path | str, device: torch.device | str) -> Model:
    """`load` in float32, for a model that is trained further.

    Raises:
        FileNotFoundError: as `load`.
        ValueError: as `load`, or the weights are quantised.
    """
    if load_metadata(path).quant is not None:
        raise ValueError(f"{path}: quantised weights cannot be trained; use the original model")
    return load(path, device, dtype=torch.float32)


def _empty_params(config: ModelConfig, quant_config: QuantConfig | None) -> Params:
    """Uninitialised parameters of a model's shapes and dtypes, on the CPU."""
    shapes = tree.map_with_path(
        gpt.param_specs(config), lambda _, weight: torch.empty(weight.shape, device="meta")
    )
    if quant_config is not None:
        shapes = quant.quantize(shapes, quant_config, gpt.matrix_paths(config).__contains__)
    params: Params = tree.map(lambda x: torch.empty_like(x, device="cpu"), shapes)
    return params


def read_json(path: Path, kind: type[T]) -> T:
    """One of a model folder's JSON files as a struct.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file does not hold such a struct.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: missing; a model folder holds {CONFIG}, {TOKENIZER} and {GENERATION}"
        ) from None
    except msgspec.MsgspecError as error:
        raise ValueError(f"{path}: {error}") from None
