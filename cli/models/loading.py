"""The options that say how a model is loaded for generation.

Invariant: `sample`, `chat` and `serve` load a model by this one function.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.pipeline.model_folder import Model


class LoadOptions(NamedTuple):
    """How to load a model.

    Attributes:
        raw: load the raw trained weights instead of their running average.
        quantize: `int8`, `int4`, or None for the stored precision.
        engine: the decoding engine: `auto`, `native` or `eager`.
        device: `auto`, `cpu`, `cuda` or `mps`.
    """

    raw: bool
    quantize: str | None
    engine: str
    device: str


load_options = options.apply_all(options.raw, options.quantize, options.engine, options.device)
collect_load_options = options.collect("loading", LoadOptions)


def load_model(path: Path, loading: LoadOptions) -> Model:
    """Load a model, run or checkpoint folder for generation.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is corrupt or belongs to another model.
    """
    from slm_fn.pipeline import model_folder

    return model_folder.load(
        path, loading.device, loading.raw, quantize=loading.quantize, decode=loading.engine
    )
