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
from slm_fn.data import clean, corpus, intake, parts
from slm_fn.data.corpus import CorpusConfig, SourceConfig
from slm_fn.data.refine import Refine, refined
from slm_fn.data.rules import Rule
from slm_fn.data.sources import CHAT
from slm_fn.text.normalize import normalize

Standing = parts.Metadata | parts.State | None


class SourceReport(msgspec.Struct, frozen=True):
    """One source: what became of it, what was counted over all runs, and the speed of this one."""

    name: str
    kind: Literal["text", "chat"]
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
    name: str
    source: SourceConfig
    refine: Refine
    settings: dict[str, Any]
    standing: Standing
    error: str = ""


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
    plans = [_plan(config, name, source, out / name, force) for name, source in corpus.resolve(config).items()]
    files.sweep(out)
    _note_strangers(out, {plan.name for plan in plans}, watch)
    kept = _kept(config, plans, out)
    done = []
    for plan in plans:
        report = _one(config, plan, out / plan.name, kept, watch, workers)
        if report.status == "failed":
            watch.note(f"{plan.name}: failed: {report.error}")
            kept = _kept(config, plans, out)  # it may have remembered what never came to the disk
        done.append(report)
    failed = [report.name for report in done if report.status == "failed"]
    return Report(done, round(time.perf_counter() - began, 2), failed)


def _kept(config: CorpusConfig, plans: list[_Plan], out: Path) -> parts.Kept:
    kept = parts.Kept(config.near)
    kept.extend(out / plan.name for plan in plans)
    return kept


def _plan(config: CorpusConfig, name: str, source: SourceConfig, folder: Path, force: bool) -> _Plan:
    """What is to be done for a source, and whether what lies there was made so."""
    try:
        plan = _Plan(name, source, _refine(config, source), _settings(config, source), parts.standing(folder))
    except ValueError as error:
        raise ValueError(f"source {name!r}: {error}") from None
    files_now = None
    try:
        files_now = intake.identity(source)
    except (ValueError, OSError) as error:
        plan = plan._replace(error=_line(error))
    if plan.standing is None:
        return plan
    was, now = plan.standing.settings, plan.settings
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if source.path is not None and files_now is not None and plan.standing.source != files_now:
        changed.append("the files themselves")
    if not changed:
        return plan
    if not force:
        raise ValueError(
            f"source {name!r}: {folder} was made with other settings ({', '.join(changed)}); "
            "put them back, take another --out, or make it anew with --force"
        )
    parts.discard(folder)
    return plan._replace(standing=None)


def _refine(config: CorpusConfig, source: SourceConfig) -> Refine:
    rules = clean.build(source.clean or ())
    if source.normalize != "none":
        alphabet: Any = source.normalize
        form = partial(normalize, alphabet=alphabet, lowercase=bool(source.lowercase))
        rules = (Rule("normalize", form), *rules)
    return Refine(rules, clean.build(source.clean_url or (), clean.URL_RULES), source.dedup or "none", config.near)


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


def _one(config: CorpusConfig, plan: _Plan, folder: Path, kept: parts.Kept, watch: Watch, workers: int) -> SourceReport:
    name, kind, standing = plan.name, plan.source.kind, plan.standing
    if isinstance(standing, parts.Metadata):
        watch.note(f"{name}: finished before, {standing.counts.kept:,} documents; skipped")
        return SourceReport(name, kind, "skipped", standing.counts, standing.tokens_estimated)
    if plan.error:
        return SourceReport(name, kind, "failed", error=plan.error)
    began = time.perf_counter()
    try:
        state = standing or parts.State(
            plan.settings, intake.pin(plan.source, lambda line: watch.note(f"{name}: {line}"))
        )
        done = _run(config, plan, state, folder, kept, watch, workers)
    except Exception as error:  # whatever one source does, the others are to go on
        if os.environ.get("SLM_DEBUG"):
            raise
        return SourceReport(name, kind, "failed", seconds=_since(began), error=_line(error))
    return SourceReport(name, kind, "done", done.counts, done.tokens_estimated, _since(began))


def _run(
    config: CorpusConfig,
    plan: _Plan,
    state: parts.State,
    folder: Path,
    kept: parts.Kept,
    watch: Watch,
    workers: int,
) -> parts.Metadata:
    source, began, before, place = plan.source, time.perf_counter(), state.counts, state.place
    cache = None if config.cache_dir is None else corpus.expand(config.cache_dir, os.environ)
    if state.rows:
        watch.note(f"{plan.name}: going on behind row {state.rows:,}, {before.kept:,} documents kept so far")

    def note(line: str) -> None:
        watch.note(f"{plan.name}: {line}")

    pinned = msgspec.structs.replace(source, revision=state.source.get("revision", source.revision))
    state = parts.run(
        folder,
        state,
        CHAT if source.kind == "chat" else ".jsonl",
        lambda done: refined(intake.rows(pinned, done, cache, place, note), plan.refine, workers),
        kept,
        _limits(config, source),
        config.part_bytes,
        note,
        lambda counts: watch.update(plan.name, counts, before, time.perf_counter() - began),
    )
    return parts.finish(
        folder,
        parts.Metadata(
            name=plan.name,
            digest=hashlib.sha256(msgspec.json.encode(plan.settings, order="sorted")).hexdigest(),
            settings=plan.settings,
            source=state.source,
            counts=state.counts,
            tokens_estimated=round(state.counts.bytes_kept / config.bytes_per_token),
            parts=state.parts,
            versions={"slm_fn": packages.version("slm_fn"), "unicode": unicodedata.unidata_version},
        ),
    )


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
