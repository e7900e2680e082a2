"""`slm data prepare`: a corpus config to clean text, one folder per source.

Invariant: parses and prints; the work is `pipeline.stages.prepare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.data.corpus.source_folder import SourceCounts
    from slm_fn.pipeline.stages.prepare import PrepareReport, SourceReport

COLUMNS = ["source", "status", "read", "kept", "share", "MB kept", "MB/s"]
MIN_SECONDS = 1e-6
"""Keeps a speed finite for a source that took no measurable time."""


@click.command("prepare")
@click.argument("config")
@options.out
@click.option(
    "--force", is_flag=True, help="Rebuild the sources whose settings or files have changed."
)
@click.option(
    "--workers",
    default=0,
    show_default=True,
    help="Worker processes; 0 cleans in this process.",
)
@options.overrides
@options.progress
@options.as_json
def command(
    config: str,
    out: Path,
    force: bool,
    workers: int,
    overrides: tuple[str, ...],
    live: bool | None,
    as_json: bool,
) -> None:
    """Clean the sources of CONFIG and remove duplicates, each source into a folder of JSONL.

    CONFIG is a file, or the preset `corpus`. The same command resumes an interrupted run and skips
    finished sources. A source that fails does not stop the others; the exit status is then 1.

    \b
    Example:
        slm data prepare corpus --out data --set sources.wikipedia.enabled=false
    """
    from slm_fn import config as configs
    from slm_fn.data.corpus.config import CorpusConfig
    from slm_fn.pipeline import progress
    from slm_fn.pipeline.stages.prepare import PrepareDisplay, prepare

    if workers < 0:
        raise click.UsageError("--workers must be at least 0")
    corpus = configs.load_as(CorpusConfig, config, overrides)
    with progress.show_progress("prepare", None, live) as display:

        def update(name: str, counts: SourceCounts, before: SourceCounts, seconds: float) -> None:
            display.update(counts.bytes_read, _status_line(name, counts, before, seconds))

        report = prepare(corpus, out, PrepareDisplay(display.note, update), force, workers)
    if as_json:
        output.print_json(report)
    else:
        _print_report(report, out)
    if report.failed:
        failed = ", ".join(report.failed)
        output.note(f"slm: failed: {failed}; run the command again, finished sources are skipped")
        click.get_current_context().exit(1)


def _status_line(name: str, counts: SourceCounts, before: SourceCounts, seconds: float) -> str:
    """Returns the progress of a source and the reading speed of this run.

    Args:
        counts: over all runs.
        before: at the start of this run.
        seconds: duration of this run.
    """
    kept_share = counts.kept / max(1, counts.read)
    bytes_per_s = (counts.bytes_read - before.bytes_read) / max(seconds, MIN_SECONDS)
    return (
        f"{name}: {counts.read:,} read, {kept_share:.0%} kept, "
        f"{counts.bytes_kept / 1e6:,.0f} MB; {bytes_per_s / 1e6:.1f} MB/s"
    )


def _print_report(report: PrepareReport, out: Path) -> None:
    rows = [_source_cells(source) for source in report.sources]
    output.print_table(f"{out}: {report.seconds:,.1f} seconds", COLUMNS, rows)
    for source in report.sources:
        removed = _describe_removed(source.counts)
        if removed:
            click.echo(f"{source.name}: {removed}")


def _source_cells(source: SourceReport) -> list[str]:
    counts = source.counts
    speed = ""
    if source.status == "done":
        bytes_per_s = counts.bytes_read / max(source.seconds, MIN_SECONDS)
        speed = f"{bytes_per_s / 1e6:.1f}"
    kept_share = f"{counts.kept / max(1, counts.read):.1%}" if counts.read else ""
    return [
        source.name,
        source.status,
        f"{counts.read:,}",
        f"{counts.kept:,}",
        kept_share,
        _format_megabytes(counts.bytes_kept),
        speed,
    ]


def _format_megabytes(num_bytes: int) -> str:
    megabytes = num_bytes / 1e6
    return f"{megabytes:,.1f}" if num_bytes >= 1e6 else f"{megabytes:.2g}"


def _describe_removed(counts: SourceCounts) -> str:
    """Returns how many documents were removed, by reason."""
    removed = counts.removed | counts.dropped | {"could not be read": counts.problems}
    return "; ".join(f"{number:,} {reason}" for reason, number in removed.items() if number)
