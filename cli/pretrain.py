"""`slm pretrain`: train a model from packed text.

Invariant: parses and prints; the work is `pipeline.pretrain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from slm_fn.cli import options


@click.command("pretrain")
@click.argument("config")
@click.option(
    "--data",
    required=True,
    multiple=True,
    metavar="PACK[=WEIGHT]",
    help="Pack folder (see slm data pack). May be repeated; rows are mixed by the weights, by default by tokens.",
)
@options.out
@options.resume
@options.overrides
@options.device
@options.progress
@options.as_json
def command(
    config: str,
    data: tuple[str, ...],
    out: Path,
    resume: str,
    overrides: tuple[str, ...],
    device: str,
    live: bool | None,
    as_json: bool,
) -> None:
    """Train a model from packed text.

    CONFIG is a file or the name of a preset; its [model] and [pretrain] sections are read.

    \b
    Example:
        slm pretrain tiny --data packed --out runs/pretrain --set pretrain.train.total_steps=200
        slm pretrain tiny --data stories=0.7 --data wiki=0.3 --out runs/mixed

    \b
    Several processes, one for each GPU; add --set pretrain.train.sharding=shard for a model too large for one:
        torchrun --nproc-per-node 2 --max-restarts 3 -m slm_fn.cli.main pretrain base --data packed --out runs/base
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.pretrain import pretrain

    packs, weights = weighted(data)
    done = pretrain(configs.load(config, overrides), packs, out, device, resume, live, weights)
    options.report_run(done, as_json)


def weighted(data: Sequence[str]) -> tuple[list[str], list[float] | None]:
    """The folders that `--data` names, and their weights if they have any.

    Raises:
        ValueError: a weight that is no number, or weights on some of the packs alone.

    Example:
        >>> weighted(["a=2", "b=1"])
        (['a', 'b'], [2.0, 1.0])
    """
    split = [(item, "") if "=" not in item or Path(item).is_dir() else item.rsplit("=", 1) for item in data]
    weights = [weight for _, weight in split if weight]
    if weights and len(weights) < len(split):
        raise ValueError(f"--data: give every pack a weight, or none: {' '.join(data)}")
    try:
        return [path for path, _ in split], [float(weight) for weight in weights] or None
    except ValueError:
        raise ValueError(f"--data: a weight is a number, as in packed=0.7, not {' '.join(weights)}") from None
