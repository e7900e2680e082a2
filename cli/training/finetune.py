"""The arguments that `slm sft` and `slm dpo` share, and how such a stage is run.

Invariant: the two commands differ by their stage and their section of the config only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.config import Config
    from slm_fn.pipeline.training.loop import TrainResult
    from slm_fn.pipeline.training.stage import RunOptions

    Note = Callable[[str], None]
    FinetuneStage = Callable[
        [Config, Path, Sequence[Path], Path, Sequence[Path], RunOptions, Note], TrainResult
    ]
    """(config, init, data, out, val, options, note) to the result of training."""


class FinetuneOptions(NamedTuple):
    """The arguments of a fine-tuning command as typed."""

    config: str
    init: Path
    data: tuple[Path, ...]
    val: tuple[Path, ...]
    val_fraction: float | None
    out: Path
    resume: str
    overrides: tuple[str, ...]
    device: str
    live: bool | None
    as_json: bool


finetune_options = options.apply_all(
    click.argument("config"),
    options.init,
    options.paths("--data", "JSONL file or folder to train on.", "data"),
    options.paths("--val", "JSONL file or folder to validate on.", "val", required=False),
    click.option(
        "--val-fraction", type=float, help="Fraction of the data to hold out, split by prompt."
    ),
    options.out,
    options.resume,
    options.overrides,
    options.device,
    options.progress,
    options.as_json,
    options.collect("arguments", FinetuneOptions),
)


def run_finetune(stage: FinetuneStage, section: str, arguments: FinetuneOptions) -> None:
    """Run a fine-tuning stage and print its result.

    Args:
        section: the stage's section of the config, which `--val-fraction` overrides.
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.training.stage import RunOptions

    overrides = list(arguments.overrides)
    if arguments.val_fraction is not None:
        overrides.append(f"{section}.val_fraction={arguments.val_fraction}")
    result = stage(
        configs.load(arguments.config, overrides),
        arguments.init,
        arguments.data,
        arguments.out,
        arguments.val,
        RunOptions(arguments.device, arguments.resume, arguments.live),
        output.note,
    )
    output.print_run(result, arguments.as_json)
