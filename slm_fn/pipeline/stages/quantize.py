"""Stage: a model folder with 8- or 4-bit matrices, and its cost in size and perplexity.

Invariant: the weights taken are those that sampling takes: the averaged ones where a folder holds
them; the original folder is not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec
import torch

from slm_fn.core import files, tree
from slm_fn.core.types import Params
from slm_fn.data.io.documents import Document
from slm_fn.lift import quant
from slm_fn.lift.quant import QuantConfig
from slm_fn.nn import gpt
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.stages import evaluate
from slm_fn.pipeline.stages.evaluate import TextReport
from slm_fn.train import checkpoint

MODEL_FILES = {checkpoint.WEIGHTS, models.CONFIG, models.TOKENIZER, models.GENERATION}


class QuantizeReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was written, and how it compares with the original.

    Texts are evaluated in float32, so that every difference is due to the quantisation.
    `size_share` refers to the weights in bfloat16, `perplexity_ratio` to the original's perplexity,
    `error` is the Euclidean norm of all changes over that of all weights.
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
) -> QuantizeReport:
    """Quantise a model's matrices and write a model folder.

    Args:
        raw: take the weights as trained, not their running average.
        documents: returns the texts to evaluate; called once for each of the two models.
        tick: called with the name of each evaluated document.

    Raises:
        ValueError: the model is quantised already, a matrix does not fit the groups, or `out` holds
            other files.
        FileNotFoundError: there is no model at the source.
    """
    out = Path(out)
    if out.resolve() == models.locate(source).resolve():
        raise ValueError(f"{out} is the original itself; name another folder")
    files.check_replaceable(out, MODEL_FILES, "a model")
    model = models.load(source, "cpu", raw, torch.float32)
    if _is_quantized(model.params):
        raise ValueError(f"{source}: the weights are quantised already; use the original model")
    is_matrix = gpt.matrix_paths(model.config).__contains__
    small = model._replace(params=quant.quantize(model.params, config, is_matrix))
    file_bytes = _write(small, config, out)

    bfloat16_bytes = 2 * tree.num_elements(model.params)
    report = QuantizeReport(
        out=str(out),
        bits=config.bits,
        group=config.group if config.bits == 4 else 0,
        file_bytes=file_bytes,
        bfloat16_bytes=bfloat16_bytes,
        size_share=file_bytes / bfloat16_bytes,
        error=_relative_error(model.params, small.params),
    )
    if documents is None:
        return report
    original = evaluate.texts(model, documents(), tick)
    quantized = evaluate.texts(small, documents(), tick)
    return msgspec.structs.replace(
        report,
        original=original,
        quantized=quantized,
        perplexity_ratio=quantized.perplexity / original.perplexity,
    )


def _is_quantized(params: Params) -> bool:
    leaves = tree.flatten_dict(params).values()
    return any(isinstance(leaf, quant.Quant | quant.Quant4) for leaf in leaves)


def _write(small: models.Model, config: QuantConfig, out: Path) -> int:
    """Write the model folder; returns the size of its weights in bytes."""
    metadata = models.metadata_files(small.config, small.tokenizer, small.generation, config)
    with files.replace_folder(out) as folder:
        checkpoint.save_tree(folder / checkpoint.WEIGHTS, small.params)
        for name, data in metadata.items():
            (folder / name).write_bytes(data)
        return (folder / checkpoint.WEIGHTS).stat().st_size


def _relative_error(params: Params, small: Params) -> float:
    difference = tree.map(lambda a, b: a - b, params, quant.dequantize(small))
    return float((tree.global_norm(difference) / tree.global_norm(params)).item())
