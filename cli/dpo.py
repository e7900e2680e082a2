"""`slm dpo`: train a model on preferences.

Invariant: parses and prints; the work is `pipeline.dpo`.
"""

from __future__ import annotations

from pathlib import Path

import click

from slm_fn.cli import options


@click.command("dpo")
@click.argument("config")
@options.init
@options.files("--data", "JSONL file or folder to train on.", letter="data")
@options.files("--val", "JSONL file or folder to judge on.", required=False, letter="val")
@click.option("--val-fraction", type=float, help="Hold out this share of the data, split by prompt.")
@options.out
@options.resume
@options.overrides
@options.device
@options.progress
@options.as_json
def command(
    config: str,
    init: Path,
    data: tuple[Path, ...],
    val: tuple[Path, ...],
    val_fraction: float | None,
    out: Path,
    resume: str,
    overrides: tuple[str, ...],
    device: str,
    live: bool | None,
    as_json: bool,
) -> None:
    """Train a model on preferred and rejected replies (JSONL of {"prompt", "chosen", "rejected"}).

    CONFIG is a file or the name of a preset; its [dpo] section is read.

    \b
    Example:
        slm dpo tiny --init runs/sft --data pairs.jsonl --out runs/dpo
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.dpo import dpo

    extra = () if val_fraction is None else (f"dpo.val_fraction={val_fraction}",)
    told = configs.load(config, [*overrides, *extra])
    done = dpo(told, init, data, out, val, device, resume, live, note=options.note)
    options.report_run(done, as_json)
