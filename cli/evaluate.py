"""`slm eval`: judge a model.

Invariant: figures name what they were measured on.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.group("eval")
def command() -> None:
    """Judge a model: perplexity and bits per byte.

    \b
    Example:
        slm eval ppl runs/pretrain --data texts/
    """


@command.command("ppl")
@click.argument("model", type=click.Path(path_type=Path))
@options.files("--data", "Text file or folder.", letter="data")
@click.option("--raw", is_flag=True, help="The weights as trained, not their running average.")
@options.device
@options.as_json
def ppl(model: Path, data: tuple[Path, ...], raw: bool, device: str, as_json: bool) -> None:
    """Loss, perplexity and bits per byte of MODEL on whole texts.

    \b
    Example:
        slm eval ppl demo/pretrain --data demo/data/held_out
    """
    import msgspec
    import torch

    from slm_fn.data import sources
    from slm_fn.pipeline import evaluate
    from slm_fn.pipeline.model import load

    found = evaluate.texts(
        load(model, device, raw, torch.float32), sources.read(data), lambda name: options.note(f"read {name}")
    )
    figures = msgspec.to_builtins(found)
    if as_json:
        options.print_json(figures)
    else:
        options.print_table(
            str(model), list(figures), [[f"{v:.4f}" if isinstance(v, float) else v for v in figures.values()]]
        )
