"""Stage: a model folder with its matrices in 8 or 4 bits, and what that costs: size, perplexity, against the original.

Invariant: the weights taken are those that sampling would take, the averaged ones where they are; the original stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import torch

from slm_fn.core import files, tree
from slm_fn.data.sources import Document
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import gpt
from slm_fn.pipeline import evaluate
from slm_fn.pipeline import model as models
from slm_fn.pipeline.evaluate import TextReport
from slm_fn.pipeline.model import Model
from slm_fn.train import checkpoint


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was written. Texts are judged in float32, so that the difference is the quantisation's alone.

    `size_share` is of the weights in bfloat16, `perplexity_ratio` of the original's.
    """

    out: str
    bits: int
    group: int
    file_bytes: int
    bfloat16_bytes: int
    size_share: float
    error: float
    original: TextReport | None = None
    quantized: TextReport | None = None
    perplexity_ratio: float | None = None


def quantize(
    source: Path | str,
    config: QuantConfig,
    out: Path | str,
    raw: bool = False,
    documents: Callable[[], Iterable[Document]] | None = None,
    tick: Callable[[str], None] = lambda name: None,
) -> Report:
    """Quantise a model's matrices and write it as a model folder.

    Args:
        documents: gives the texts to judge both models on, once for each.

    Raises:
        ValueError: the model is quantised already, a matrix does not fit the groups, or `out` holds something else.
        FileNotFoundError: there is no model at the source.
    """
    out = Path(out)
    _check_place(out, models.locate(source))
    model = models.load(source, "cpu", raw, torch.float32)
    if any(isinstance(leaf, quant.Quant | quant.Quant4) for leaf in tree.flat(model.params).values()):
        raise ValueError(f"{source}: the weights are quantised already; take the original")
    small = model._replace(params=quant.quantize(model.params, config, gpt.matrices(model.config).__contains__))
    with files.folder(out) as place:
        checkpoint.save_tree(place / checkpoint.WEIGHTS, small.params)
        for name, data in models.describe(model.config, model.tokenizer, model.generation, config).items():
            (place / name).write_bytes(data)
        file_bytes = (place / checkpoint.WEIGHTS).stat().st_size
    bfloat16_bytes = 2 * tree.count(model.params)
    found = Report(
        out=str(out),
        bits=config.bits,
        group=config.group if config.bits == 4 else 0,
        file_bytes=file_bytes,
        bfloat16_bytes=bfloat16_bytes,
        size_share=file_bytes / bfloat16_bytes,
        error=_error(model.params, small.params),
    )
    return found if documents is None else msgspec.structs.replace(found, **_judged(model, small, documents, tick))


def _judged(
    model: Model, small: Model, documents: Callable[[], Iterable[Document]], tick: Callable[[str], None]
) -> dict[str, Any]:
    original, quantized = (evaluate.texts(each, documents(), tick) for each in (model, small))
    ratio = quantized.perplexity / original.perplexity
    return {"original": original, "quantized": quantized, "perplexity_ratio": ratio}


def _error(params: Any, small: Any) -> float:
    """The size of all that was changed over the size of all weights, in Euclidean norms."""
    difference = tree.map(lambda a, b: a - b, params, quant.dequantize(small))
    return (tree.global_norm(difference) / tree.global_norm(params)).item()


def _check_place(out: Path, source: Path) -> None:
    """A folder is replaced as a whole, so it may hold nothing but an older model of this kind."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a model is a folder")
    if out.resolve() == source.resolve():
        raise ValueError(f"{out} is the original itself; name another folder")
    mine = {checkpoint.WEIGHTS, models.CONFIG, models.TOKENIZER, models.GENERATION}
    others = sorted({file.name for file in out.iterdir()} - mine) if out.exists() else []
    if others:
        shown = ", ".join(others[:3])
        raise ValueError(f"{out} holds other files ({shown}); name a new folder for the quantised model")
