"""`slm eval`: evaluate a model.

Invariant: every reported figure stands beside what it was measured on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from slm_fn.cli import options, output


@click.group("eval")
def command() -> None:
    """Evaluate a model: perplexity and bits per byte.

    \b
    Example:
        slm eval ppl runs/pretrain --data texts/
    """


@command.command("ppl")
@click.argument("model", type=options.PATH)
@options.paths("--data", "Text file or folder.", "data")
@options.raw
@options.device
@options.as_json
def ppl(model: Path, data: tuple[Path, ...], raw: bool, device: str, as_json: bool) -> None:
    """Measure loss, perplexity and bits per byte of MODEL on complete texts.

    \b
    Example:
        slm eval ppl demo/pretrain --data demo/data/held_out
    """
    import msgspec
    import torch

    from slm_fn.data.io import documents
    from slm_fn.pipeline.model_folder import load
    from slm_fn.pipeline.stages import evaluate

    report = evaluate.texts(
        load(model, device, raw, torch.float32),
        documents.read(data),
        lambda name: output.note(f"read {name}"),
    )
    figures = msgspec.to_builtins(report)
    if as_json:
        output.print_json(figures)
        return
    cells = [_format(value) for value in figures.values()]
    output.print_table(str(model), list(figures), [cells])


def _format(value: Any) -> Any:
    return f"{value:.4f}" if isinstance(value, float) else value
