"""`slm quantize`: quantize a model's matrices to 8 or 4 bits.

Invariant: the original and the quantized model are compared on the same texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.pipeline.stages.evaluate import TextReport
    from slm_fn.pipeline.stages.quantize import QuantizeReport


@click.command("quantize")
@click.argument("model", type=options.PATH)
@click.option(
    "--bits", required=True, type=click.Choice(["8", "4"]), help="Bits of a matrix element."
)
@click.option(
    "--group",
    default=32,
    show_default=True,
    type=click.IntRange(2),
    help="Elements that share a scale, with 4 bits.",
)
@options.out
@options.paths(
    "--data", "Text file or folder to compare the two models on.", "data", required=False
)
@options.raw
@options.as_json
def command(
    model: Path, bits: str, group: int, out: Path, data: tuple[Path, ...], raw: bool, as_json: bool
) -> None:
    """Write MODEL with its matrices quantized to 8 or 4 bits.

    With 8 bits there is one scale per row; with 4 bits there is one per group, and the embedding
    and the output head keep 8 bits.

    \b
    Example:
        slm quantize demo/sft --bits 8 --out demo/int8 --data demo/data/held_out
        slm chat demo/int8
    """
    from slm_fn.data.io import documents, folders
    from slm_fn.lift.quant import QuantConfig
    from slm_fn.pipeline.stages import quantize

    for path in data:  # a missing path is reported before anything is written
        folders.list_files(path)
    config = QuantConfig(8 if bits == "8" else 4, group)
    read_texts = (lambda: documents.read(data)) if data else None
    report = quantize.quantize(
        model, config, out, raw, read_texts, lambda name: output.note(f"read {name}")
    )
    if as_json:
        output.print_json(report)
    else:
        output.print_table(str(out), ["", ""], _rows(report, bits))


def _rows(report: QuantizeReport, bits: str) -> list[list[str]]:
    megabytes = report.file_bytes / 1e6
    rows = [
        ["weights", f"{megabytes:,.1f} MB, {report.size_share:.2f} of bfloat16's"],
        ["error", f"{report.error:.2%} of the weights' norm"],
    ]
    if report.original is not None:
        rows.append(["original", _quality(report.original)])
    if report.quantized is not None:
        rows.append([f"{bits} bits", _quality(report.quantized)])
    if report.perplexity_ratio is not None:
        rows.append(["perplexity", f"{report.perplexity_ratio - 1:+.2%}"])
    return rows


def _quality(report: TextReport) -> str:
    return f"perplexity {report.perplexity:.3f}, {report.bits_per_byte:.4f} bits per byte"
