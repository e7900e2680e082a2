"""Stage: a corpus of several sources to clean text and conversations, a folder each.

A source that fails is told in one line and the others go on; what is finished is skipped; what was killed goes on.

Invariant: the same config over the same sources leaves the same bytes, however often the stage was stopped between.
"""

from __future__ import annotations

import hashlib
import os
import time
import unicodedata
from collections.abc import Callable
from functools import partial
from importlib import metadata as packages
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import msgspec

from slm_fn.core import files
from slm_fn.data import clean, corpus, filters, intake, parts
from slm_fn.data.corpus import CorpusConfig, SourceConfig
from slm_fn.data.refine import Refine, refined
from slm_fn.data.rules import Rule
from slm_fn.pipeline.progress import counted
from slm_fn.text.normalize import normalize

LOCK = ".lock"
Standing = parts.Metadata | parts.State | None


class SourceReport(msgspec.Struct, frozen=True):
    """One source: what became of it, what was counted over all runs, and the speed of this one."""

    name: str
    kind: Literal["text", "chat", "pairs"]
    status: Literal["done", "skipped", "failed"]
    counts: parts.Counts = parts.Counts()
    tokens_estimated: int = 0
    seconds: float = 0.0
    error: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a run of the stage did; `failed` names the sources that are not there."""

    sources: list[SourceReport]
    seconds: float
    failed: list[str]


class Watch(NamedTuple):
    """Where progress goes: lines that stay, and the counts of a source so far with the seconds of this run."""

    note: Callable[[str], None]
    update: Callable[[str, parts.Counts, parts.Counts, float], None] = lambda *_: None


class _Plan(NamedTuple):
    """A source and what lies in its folder; `changed` names what is no longer as it was made of."""

    name: str
    source: SourceConfig
    folder: Path
    refine: Refine
    settings: dict[str, Any]
    standing: Standing
    changed: list[str]
    error: str = ""


class _Run(NamedTuple):
    """What all sources share."""

    config: CorpusConfig
    kept: parts.Kept
    watch: Watch
    workers: int
    cache: Path | None


def prepare(config: CorpusConfig, out: Path | str, watch: Watch, force: bool = False, workers: int = 0) -> Report:
    """Bring every enabled source to `out`/NAME, in the order of the config.

    Args:
        force: begin those anew whose settings or files changed.
        workers: processes to clean in; 0 cleans in this one.

    Raises:
        ValueError: the config contradicts itself, or what lies in `out` was made with other settings or files; before
            anything is read.
    """
    out, began = Path(out), time.perf_counter()
    cache = None if config.cache_dir is None else corpus.expand(config.cache_dir, os.environ)
    wanted = {name: (source, _refine(config, name, source)) for name, source in corpus.resolve(config).items()}
    out.mkdir(parents=True, exist_ok=True)
    with files.lock(out / LOCK):
        plans = [_plan(config, name, *told, out / name) for name, told in wanted.items()]
        done = _all(config, plans, out, watch, force, workers, cache)
    failed = [report.name for report in done if report.status == "failed"]
    return Report(done, round(time.perf_counter() - began, 2), failed)


def _all(
    config: CorpusConfig,
    plans: list[_Plan],
    out: Path,
    watch: Watch,
    force: bool,
    workers: int,
    cache: Path | None,
) -> list[SourceReport]:
    _check(plans, force)
    files.sweep(out)
    plans = [_renewed(plan, watch) if plan.changed else plan for plan in plans]
    _note_strangers(out, {plan.name for plan in plans}, watch)
    run = _Run(config, _kept(config, plans), watch, workers, cache)
    done = []
    for plan in plans:
        report = _one(run, plan)
        if report.status == "failed":
            watch.note(f"{plan.name}: failed: {report.error}")
            run = run._replace(kept=_kept(config, plans))  # it may remember what never came to the disk
        done.append(report)
    return done


def _kept(config: CorpusConfig, plans: list[_Plan]) -> parts.Kept:
    kept = parts.Kept(config.near)
    kept.extend(plan.folder for plan in plans)
    return kept


def _plan(config: CorpusConfig, name: str, source: SourceConfig, refine: Refine, folder: Path) -> _Plan:
    settings, standing = _settings(config, source), parts.standing(folder)
    plan, lies_here = _Plan(name, source, folder, refine, settings, standing, []), None
    try:
        lies_here = intake.identity(source)
    except (ValueError, OSError) as error:
        plan = plan._replace(error=_line(error))
    if standing is None:
        return plan
    was = standing.settings
    changed = sorted(key for key in was.keys() | settings.keys() if was.get(key) != settings.get(key))
    if source.path is not None and lies_here not in (None, standing.source):
        changed.append("the files themselves")
    return plan._replace(changed=changed)


def _check(plans: list[_Plan], force: bool) -> None:
    for plan in plans:
        if plan.changed and not force:
            raise ValueError(
                f"source {plan.name!r}: {plan.folder} was made with other settings ({', '.join(plan.changed)}); "
                "put them back, take another --out, or make it anew with --force"
            )


def _renewed(plan: _Plan, watch: Watch) -> _Plan:
    parts.discard(plan.folder)
    watch.note(f"{plan.name}: begun anew; what other sources dropped as its duplicates stays dropped")
    return plan._replace(standing=None, changed=[])


def _refine(config: CorpusConfig, name: str, source: SourceConfig) -> Refine:
    try:
        rules, chosen = clean.build(source.clean or ()), filters.build(source.filters)
        url_rules = clean.build(source.clean_url or (), clean.URL_RULES)
    except (ValueError, OSError) as error:  # of a file of words, too
        raise ValueError(f"source {name!r}: {_line(error)}") from None
    if source.normalize != "none":
        alphabet: Any = source.normalize
        form = partial(normalize, alphabet=alphabet, lowercase=bool(source.lowercase))
        rules = (Rule("normalize", form), *rules)
    return Refine(rules, url_rules, source.dedup or "none", config.near, chosen)


def _settings(config: CorpusConfig, source: SourceConfig) -> dict[str, Any]:
    """All that the result depends on beside the rows. What is not set is left out: a new setting is no change."""
    shared: dict[str, Any] = {"part_bytes": config.part_bytes}
    if source.dedup == "near":
        shared["near"] = config.near
    if source.max_tokens is not None:
        shared["bytes_per_token"] = config.bytes_per_token
    told = {**msgspec.structs.asdict(source), **shared}
    plain = msgspec.to_builtins(
        {key: value for key, value in told.items() if key != "enabled" and value not in (None, ())}
    )
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(plain)))


def _one(run: _Run, plan: _Plan) -> SourceReport:
    name, kind, standing = plan.name, plan.source.kind, plan.standing
    if isinstance(standing, parts.Metadata):
        run.watch.note(f"{name}: finished before, {standing.counts.kept:,} documents; skipped")
        return SourceReport(name, kind, "skipped", standing.counts, standing.tokens_estimated)
    if plan.error:
        return SourceReport(name, kind, "failed", error=plan.error)
    began = time.perf_counter()
    try:
        done = _written(run, plan, standing)
    except Exception as error:  # whatever one source does, the others are to go on
        if os.environ.get("SLM_DEBUG"):
            raise
        return SourceReport(name, kind, "failed", seconds=_since(began), error=_line(error))
    return SourceReport(name, kind, "done", done.counts, done.tokens_estimated, _since(began))


def _written(run: _Run, plan: _Plan, journal: parts.State | None) -> parts.Metadata:
    source, config, began = plan.source, run.config, time.perf_counter()

    def note(line: str) -> None:
        run.watch.note(f"{plan.name}: {line}")

    begun = journal or parts.State(plan.settings, intake.pin(source, note))
    if begun.rows:
        note(f"going on behind row {begun.rows:,}, {begun.counts.kept:,} documents kept so far")
    pinned = msgspec.structs.replace(source, revision=begun.source.get("revision", source.revision))
    with counted(note) as tell:
        state = parts.run(
            plan.folder,
            begun,
            ".jsonl" if source.kind == "text" else f".{source.kind}.jsonl",
            lambda done: refined(intake.rows(pinned, done, run.cache, begun.place, note), plan.refine, run.workers),
            run.kept,
            _limits(config, source),
            config.part_bytes,
            tell,
            lambda counts: run.watch.update(plan.name, counts, begun.counts, time.perf_counter() - began),
        )
    metadata = parts.Metadata(
        name=plan.name,
        digest=hashlib.sha256(msgspec.json.encode(plan.settings, order="sorted")).hexdigest(),
        settings=plan.settings,
        source=state.source,
        counts=state.counts,
        tokens_estimated=round(state.counts.bytes_kept / config.bytes_per_token),
        parts=state.parts,
        versions={"slm_fn": packages.version("slm_fn"), "unicode": unicodedata.unidata_version},
    )
    return parts.finish(plan.folder, metadata)


def _limits(config: CorpusConfig, source: SourceConfig) -> parts.Limits:
    by_tokens = None if source.max_tokens is None else int(source.max_tokens * config.bytes_per_token)
    return parts.Limits(
        source.max_documents, min((x for x in (source.max_bytes, by_tokens) if x is not None), default=None)
    )


def _note_strangers(out: Path, names: set[str], watch: Watch) -> None:
    """Folders of sources that the config no longer has would be packed all the same, so they are told."""
    for folder in sorted(out.iterdir()) if out.is_dir() else []:
        if folder.name not in names and ((folder / parts.METADATA).is_file() or (folder / parts.STATE).is_file()):
            watch.note(f"{folder} is of a source that this config does not have or enable; remove it to leave it out")


def _since(began: float) -> float:
    return round(time.perf_counter() - began, 2)


def _line(error: Exception) -> str:
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)
    text = " ".join(text.split())
    return text if text and isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
