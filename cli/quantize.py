"""`slm quantize`: a model with its matrices in 8 or 4 bits.

Invariant: figures compare it with the original on the same texts.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("quantize")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--bits", required=True, type=click.Choice(["8", "4"]), help="Of a matrix's numbers.")
@click.option("--group", default=32, show_default=True, type=click.IntRange(2), help="Numbers to a scale, in 4 bits.")
@options.out
@options.files("--data", "Text file or folder to compare the two on.", required=False, letter="data")
@click.option("--raw", is_flag=True, help="The weights as trained, not their running average.")
@options.as_json
def command(model: Path, bits: str, group: int, out: Path, data: tuple[Path, ...], raw: bool, as_json: bool) -> None:
    """Write MODEL with its matrices in 8 bits (a scale a row) or 4 (a scale a group; embedding and head keep 8).

    \b
    Example:
        slm quantize demo/sft --bits 8 --out demo/int8 --data demo/data/held_out
        slm chat demo/int8
    """
    from slm_fn.data import sources
    from slm_fn.lift.quant import QuantConfig
    from slm_fn.pipeline import quantize

    for path in data:  # before anything is written
        sources.files_of(path)
    config = QuantConfig(8 if bits == "8" else 4, group)
    texts = (lambda: sources.read(data)) if data else None
    found = quantize.quantize(model, config, out, raw, texts, lambda name: options.note(f"read {name}"))
    if as_json:
        options.print_json(found)
        return
    rows = [
        ["weights", f"{found.file_bytes / 1e6:,.1f} MB, {found.size_share:.2f} of bfloat16's"],
        ["changed by", f"{found.error:.2%} of the weights' norm"],
    ]
    for name, judged in (("original", found.original), (f"{bits} bits", found.quantized)):
        if judged is not None:
            rows.append([name, f"perplexity {judged.perplexity:.3f}, {judged.bits_per_byte:.4f} bits per byte"])
    if found.perplexity_ratio is not None:
        rows.append(["perplexity", f"{found.perplexity_ratio - 1:+.2%}"])
    options.print_table(str(out), ["", ""], rows)
