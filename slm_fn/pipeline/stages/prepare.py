"""Stage: a corpus of several sources to clean text and conversations, one folder per source.

A source that fails is reported in one line and the others continue; a finished source is skipped;
an interrupted one resumes.

Invariant: the same config over the same sources leaves the same bytes, however often the stage was
interrupted.
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
from collections.abc import Callable, Generator, Iterator
from importlib import metadata as packages
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from slm_fn.core import files
from slm_fn.data.corpus import config as corpus
from slm_fn.data.corpus import part_files, source_folder, source_rows
from slm_fn.data.corpus.clean_worker import CleanedItem, clean_rows
from slm_fn.data.corpus.config import CorpusConfig, SourceConfig
from slm_fn.data.corpus.duplicates import DuplicateIndex
from slm_fn.data.corpus.part_files import PartSettings, SourceLimits
from slm_fn.data.corpus.source_folder import SourceCounts, SourceMetadata, SourceState
from slm_fn.data.corpus.source_rows import SourceRow
from slm_fn.pipeline.progress import limit_notes
from slm_fn.pipeline.stages.source_plan import SourcePlan, build_worker, error_line, plan_source

LOCK = ".lock"


class SourceReport(msgspec.Struct, frozen=True):
    """One source: its status, its counts over all runs, and the seconds of this one."""

    name: str
    kind: Literal["text", "chat", "pairs"]
    status: Literal["done", "skipped", "failed"]
    counts: SourceCounts = SourceCounts()
    tokens_estimated: int = 0
    seconds: float = 0.0
    error: str = ""


class PrepareReport(msgspec.Struct, frozen=True):
    """A run of the stage; `failed` names the sources that could not be prepared."""

    sources: list[SourceReport]
    seconds: float
    failed: list[str]


class PrepareDisplay(NamedTuple):
    """Where progress is shown.

    Attributes:
        note: called with lines that stay.
        update: called with a source's name, its counts, its counts before this run, and the seconds
            of this run.
    """

    note: Callable[[str], None]
    update: Callable[[str, SourceCounts, SourceCounts, float], None] = lambda *_: None


class _Run(NamedTuple):
    """What all sources of a run share."""

    config: CorpusConfig
    duplicates: DuplicateIndex
    display: PrepareDisplay
    workers: int
    cache: Path | None


def prepare(
    config: CorpusConfig,
    out: Path | str,
    display: PrepareDisplay,
    force: bool = False,
    workers: int = 0,
) -> PrepareReport:
    """Prepare every enabled source in `out`/NAME, in the order of the config.

    Args:
        force: start sources anew whose settings or files changed.
        workers: processes that clean; 0 cleans in this one.

    Raises:
        ValueError: before anything is read: the config contradicts itself, or a folder in `out` was
            made with other settings or files.
    """
    out = Path(out)
    started = time.perf_counter()
    cache = None if config.cache_dir is None else corpus.expand_path(config.cache_dir, os.environ)
    sources = corpus.resolve(config)
    # Before the folder exists: a rule that cannot be built is an error of the config.
    clean_workers = {name: build_worker(config, name, source) for name, source in sources.items()}
    out.mkdir(parents=True, exist_ok=True)
    with files.exclusive_lock(out / LOCK):
        plans = [
            plan_source(config, name, sources[name], worker, out / name)
            for name, worker in clean_workers.items()
        ]
        _check_unchanged(plans, force)
        files.remove_leftovers(out)
        plans = [_renew(plan, display) if plan.changed else plan for plan in plans]
        _note_other_folders(out, {plan.name for plan in plans}, display)
        run = _Run(config, _index(config, plans), display, workers, cache)
        reports = list(_prepare_all(run, plans))
    failed = [report.name for report in reports if report.status == "failed"]
    return PrepareReport(reports, _seconds_since(started), failed)


def _prepare_all(run: _Run, plans: list[SourcePlan]) -> Iterator[SourceReport]:
    for plan in plans:
        report = _prepare_one(run, plan)
        if report.status == "failed":
            run.display.note(f"{plan.name}: failed: {report.error}")
            # The index may hold documents that were never written.
            run = run._replace(duplicates=_index(run.config, plans))
        yield report


def _index(config: CorpusConfig, plans: list[SourcePlan]) -> DuplicateIndex:
    """The duplicate index of everything written so far."""
    index = DuplicateIndex(config.near)
    index.extend(plan.folder for plan in plans)
    return index


def _check_unchanged(plans: list[SourcePlan], force: bool) -> None:
    for plan in plans:
        if plan.changed and not force:
            raise ValueError(
                f"source {plan.name!r}: {plan.folder} was made with other settings "
                f"({', '.join(plan.changed)}); restore them, take another --out, "
                "or start anew with --force"
            )


def _renew(plan: SourcePlan, display: PrepareDisplay) -> SourcePlan:
    source_folder.remove(plan.folder)
    display.note(
        f"{plan.name}: started anew; what other sources dropped as its duplicates stays dropped"
    )
    return plan._replace(existing=None, changed=[])


def _note_other_folders(out: Path, names: set[str], display: PrepareDisplay) -> None:
    """Name the folders of sources that the config lacks: they would be packed with the others."""
    for folder in sorted(out.iterdir()):
        if folder.name in names:
            continue
        is_finished = (folder / source_folder.METADATA).is_file()
        is_half_done = (folder / source_folder.STATE).is_file()
        if is_finished or is_half_done:
            display.note(
                f"{folder} is of a source that this config does not have or enable; "
                "remove it to leave it out"
            )


def _prepare_one(run: _Run, plan: SourcePlan) -> SourceReport:
    name = plan.name
    kind = plan.source.kind
    existing = plan.existing
    if isinstance(existing, SourceMetadata):
        kept = existing.counts.kept
        run.display.note(f"{name}: finished before, {kept:,} documents; skipped")
        return SourceReport(name, kind, "skipped", existing.counts, existing.tokens_estimated)
    if plan.error:
        return SourceReport(name, kind, "failed", error=plan.error)
    started = time.perf_counter()
    try:
        metadata = _write_source(run, plan, existing)
    except Exception as error:  # whatever happens to one source, the others continue
        if os.environ.get("SLM_DEBUG"):
            raise
        seconds = _seconds_since(started)
        return SourceReport(name, kind, "failed", seconds=seconds, error=error_line(error))
    seconds = _seconds_since(started)
    return SourceReport(name, kind, "done", metadata.counts, metadata.tokens_estimated, seconds)


def _write_source(run: _Run, plan: SourcePlan, saved: SourceState | None) -> SourceMetadata:
    """Write the part files of a source and its metadata, resuming from a saved state."""
    source = plan.source
    started = time.perf_counter()

    def note(line: str) -> None:
        run.display.note(f"{plan.name}: {line}")

    state = saved or SourceState(plan.settings, source_rows.pin_revision(source, note))
    if state.rows:
        note(f"resuming after row {state.rows:,}, {state.counts.kept:,} documents kept so far")
    revision = state.source.get("revision", source.revision)
    pinned = msgspec.structs.replace(source, revision=revision)

    def cleaned_rows(
        num_done: int,
    ) -> Generator[tuple[SourceRow, CleanedItem], None, None]:
        rows = source_rows.read_rows(pinned, num_done, run.cache, state.cursor, note)
        return clean_rows(rows, plan.worker, run.workers)

    def update(counts: SourceCounts) -> None:
        seconds = time.perf_counter() - started
        run.display.update(plan.name, counts, state.counts, seconds)

    with limit_notes(note) as report_problem:
        settings = PartSettings(
            ".jsonl" if source.kind == "text" else f".{source.kind}.jsonl",
            _limits(run.config, source),
            run.config.part_bytes,
            report_problem,
            update,
        )
        finished = part_files.write_parts(
            plan.folder, state, cleaned_rows, run.duplicates, settings
        )
    return source_folder.finish(plan.folder, _metadata(run.config, plan, finished))


def _metadata(config: CorpusConfig, plan: SourcePlan, state: SourceState) -> SourceMetadata:
    settings = msgspec.json.encode(plan.settings, order="sorted")
    return SourceMetadata(
        name=plan.name,
        digest=hashlib.sha256(settings).hexdigest(),
        settings=plan.settings,
        source=state.source,
        counts=state.counts,
        tokens_estimated=round(state.counts.bytes_kept / config.bytes_per_token),
        parts=state.parts,
        versions={"slm_fn": packages.version("slm_fn"), "unicode": unicodedata.unidata_version},
    )


def _limits(config: CorpusConfig, source: SourceConfig) -> SourceLimits:
    """Limits of documents and bytes; one of tokens becomes bytes."""
    byte_limits: list[int] = []
    if source.max_bytes is not None:
        byte_limits.append(source.max_bytes)
    if source.max_tokens is not None:
        byte_limits.append(int(source.max_tokens * config.bytes_per_token))
    return SourceLimits(source.max_documents, min(byte_limits, default=None))


def _seconds_since(started: float) -> float:
    return round(time.perf_counter() - started, 2)
