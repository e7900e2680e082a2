"""`slm data prepare`: a corpus config to clean text, a folder for each source.

Invariant: parses and prints; the work is `pipeline.prepare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slm_fn.cli import options

if TYPE_CHECKING:
    from slm_fn.data.parts import Counts
    from slm_fn.pipeline.prepare import Report


@click.command("prepare")
@click.argument("config")
@options.out
@click.option("--force", is_flag=True, help="Make those sources anew whose settings or files changed.")
@click.option("--workers", default=0, show_default=True, help="Worker processes to clean in; 0 cleans in this one.")
@options.overrides
@options.progress
@options.as_json
@click.pass_context
def command(
    ctx: click.Context,
    config: str,
    out: Path,
    force: bool,
    workers: int,
    overrides: tuple[str, ...],
    live: bool | None,
    as_json: bool,
) -> None:
    """Clean the sources of CONFIG (a file, or the preset `corpus`) and drop duplicates, each into a folder of JSONL.

    What is finished is skipped, and what was stopped goes on: run the same command again. A source that fails does not
    stop the others; the exit status is then 1.

    \b
    Example:
        slm data prepare corpus --out data --set sources.wikipedia.enabled=false
    """
    from slm_fn import config as configs
    from slm_fn.data.corpus import CorpusConfig
    from slm_fn.pipeline import progress
    from slm_fn.pipeline.prepare import Watch, prepare

    if workers < 0:
        raise click.UsageError("--workers must be at least 0")
    told = configs.load_as(CorpusConfig, config, overrides)
    with progress.display("prepare", None, live) as shown:

        def update(name: str, counts: Counts, before: Counts, seconds: float) -> None:
            shown.update(counts.bytes_read, _figures(name, counts, before, seconds))

        report = prepare(told, out, Watch(shown.note, update), force, workers)
    if as_json:
        options.print_json(report)
    else:
        _table(report, out)
    if report.failed:
        options.note(f"slm: failed: {', '.join(report.failed)}; run the command again, what is finished is skipped")
        ctx.exit(1)


def _figures(name: str, counts: Counts, before: Counts, seconds: float) -> str:
    """How far a source is, and how fast this run reads it."""
    speed = max(seconds, 1e-6)
    return (
        f"{name}: {counts.read:,} read, {counts.kept / max(1, counts.read):.0%} kept, "
        f"{counts.bytes_kept / 1e6:,.0f} MB; {(counts.bytes_read - before.bytes_read) / speed / 1e6:.1f} MB/s"
    )


def _table(report: Report, out: Path) -> None:
    rows = []
    for row in report.sources:
        counts, done = row.counts, row.status == "done"
        speed = f"{counts.bytes_read / max(row.seconds, 1e-6) / 1e6:.1f}" if done else ""
        share = f"{counts.kept / max(1, counts.read):.1%}" if counts.read else ""
        size = f"{counts.bytes_kept / 1e6:,.1f}" if counts.bytes_kept >= 1e6 else f"{counts.bytes_kept / 1e6:.2g}"
        rows.append([row.name, row.status, f"{counts.read:,}", f"{counts.kept:,}", share, size, speed])
    options.print_table(
        f"{out}: {report.seconds:,.1f} seconds",
        ["source", "status", "read", "kept", "share", "MB kept", "MB/s"],
        rows,
    )
    for row in report.sources:
        told = row.counts.removed | row.counts.dropped | {"could not be read": row.counts.problems}
        left = "; ".join(f"{number:,} {why}" for why, number in told.items() if number)
        if left:
            click.echo(f"{row.name}: {left}")
