"""`slm pretrain`: train a model from packed text.

Invariant: parses and prints; the work is `pipeline.stages.pretrain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from slm_fn.cli import options, output


class RunArguments(NamedTuple):
    """The arguments that become the pipeline's `RunOptions`."""

    device: str
    resume: str
    live: bool | None


@click.command("pretrain")
@click.argument("config")
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="PACK[=WEIGHT]",
    help="Pack folder (see slm data pack) and its weight in the mixture (default: its number "
    "of tokens). May be repeated.",
)
@options.out
@options.resume
@options.overrides
@options.device
@options.progress
@options.as_json
@options.collect("run", RunArguments)
def command(
    config: str,
    data: tuple[str, ...],
    out: Path,
    overrides: tuple[str, ...],
    run: RunArguments,
    as_json: bool,
) -> None:
    """Train a model from packed text.

    CONFIG is a file or the name of a preset; its [model] and [pretrain] sections are read.

    \b
    Example:
        slm pretrain tiny --data packed --out runs/pretrain --set pretrain.train.total_steps=200
        slm pretrain tiny --data stories=0.7 --data wiki=0.3 --out runs/mixed

    \b
    On several GPUs, one process each (--set pretrain.train.sharding=shard for a model too large
    for one):
        torchrun --nproc-per-node 2 --max-restarts 3 -m slm_fn.cli.main pretrain base \\
            --data packed --out runs/base
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.stages.pretrain import pretrain
    from slm_fn.pipeline.training.stage import RunOptions

    packs, weights = parse_packs(data)
    run_options = RunOptions(run.device, run.resume, run.live)
    result = pretrain(configs.load(config, overrides), packs, out, run_options, weights)
    output.print_run(result, as_json)


def parse_packs(data: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """Returns the folders that `--data` names, and their mixture weights if there are any.

    Args:
        data: `FOLDER` or `FOLDER=WEIGHT`; an existing folder with `=` in its name is a folder.

    Raises:
        ValueError: a weight is not a number, or only some of the packs have weights.

    Example:
        >>> parse_packs(["a=2", "b=1"])
        (['a', 'b'], [2.0, 1.0])
    """
    folders: list[str] = []
    weights: list[str] = []
    for item in data:
        folder, weight = _split_weight(item)
        folders.append(folder)
        if weight:
            weights.append(weight)
    if not weights:
        return folders, None
    if len(weights) < len(folders):
        raise ValueError(f"--data: give every pack a weight, or none: {' '.join(data)}")
    try:
        return folders, [float(weight) for weight in weights]
    except ValueError:
        message = f"--data: a weight is a number, as in packed=0.7, not {' '.join(weights)}"
        raise ValueError(message) from None


def _split_weight(item: str) -> tuple[str, str]:
    if "=" not in item or Path(item).is_dir():
        return item, ""
    folder, weight = item.rsplit("=", 1)
    return folder, weight
