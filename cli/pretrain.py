"""`slm pretrain`: train a model from packed text.

Invariant: parses and prints; the work is `pipeline.pretrain`.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("pretrain")
@click.argument("config")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Pack folder (see slm data pack).")
@options.out
@options.resume
@options.overrides
@options.device
@options.progress
@options.as_json
def command(
    config: str,
    data: Path,
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
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.pretrain import pretrain

    done = pretrain(configs.load(config, overrides), data, out, device, resume, live)
    options.report_run(done, as_json)
