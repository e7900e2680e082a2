"""Plans of a prepare run: each source's settings, its cleaning, and what its folder holds.

Invariant: planning reads settings and folders only; nothing is written, and no row is read.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec

from slm_fn.data.chat import filters
from slm_fn.data.clean import cleaning
from slm_fn.data.clean.rules import Rule
from slm_fn.data.corpus import source_folder, source_rows
from slm_fn.data.corpus.clean_worker import CleanWorker
from slm_fn.data.corpus.config import CorpusConfig, SourceConfig
from slm_fn.data.corpus.source_folder import SourceMetadata, SourceState
from slm_fn.text.normalize import normalize


class SourcePlan(NamedTuple):
    """A source and its folder.

    Attributes:
        settings: all that the result depends on beside the rows.
        existing: what the folder holds: a finished source, a half-done one, or nothing.
        changed: the settings that differ from those of the folder.
        error: why the source cannot be read; empty if it can.
    """

    name: str
    source: SourceConfig
    folder: Path
    worker: CleanWorker
    settings: dict[str, Any]
    existing: SourceMetadata | SourceState | None
    changed: list[str]
    error: str = ""


def plan_source(
    config: CorpusConfig, name: str, source: SourceConfig, worker: CleanWorker, folder: Path
) -> SourcePlan:
    """Compare a source with what its folder holds."""
    settings = _settings(config, source)
    existing = source_folder.load(folder)
    plan = SourcePlan(name, source, folder, worker, settings, existing, [])
    fingerprint = None
    try:
        fingerprint = source_rows.fingerprint_files(source)
    except (ValueError, OSError) as error:
        plan = plan._replace(error=error_line(error))
    if existing is None:
        return plan
    keys = existing.settings.keys() | settings.keys()
    changed = sorted(key for key in keys if existing.settings.get(key) != settings.get(key))
    if source.path is not None and fingerprint not in (None, existing.source):
        changed.append("the files themselves")
    return plan._replace(changed=changed)


def build_worker(config: CorpusConfig, name: str, source: SourceConfig) -> CleanWorker:
    """The cleaning of a source: normalisation, rules, filters and duplicate signatures.

    Raises:
        ValueError: a rule or filter does not exist or has wrong settings; names the source.
    """
    try:
        rules = cleaning.build_rules(source.clean or ())
        chat_filters = filters.build(source.filters)
        url_rules = cleaning.build_rules(source.clean_url or (), cleaning.URL_RULES)
    except (ValueError, OSError) as error:  # OSError: the file of a list rule
        raise ValueError(f"source {name!r}: {error_line(error)}") from None
    if source.normalize != "none":
        alphabet: Any = source.normalize
        transform = partial(normalize, alphabet=alphabet, lowercase=bool(source.lowercase))
        rules = (Rule("normalize", transform), *rules)
    return CleanWorker(rules, url_rules, source.dedup or "none", config.near, chat_filters)


def _settings(config: CorpusConfig, source: SourceConfig) -> dict[str, Any]:
    """All that the result depends on beside the rows, as plain JSON values.

    Settings that are not set are left out, so that a setting added later changes nothing.
    """
    values: dict[str, Any] = {**msgspec.structs.asdict(source), "part_bytes": config.part_bytes}
    if source.dedup == "near":
        values["near"] = config.near
    if source.max_tokens is not None:
        values["bytes_per_token"] = config.bytes_per_token
    set_values = {
        key: value for key, value in values.items() if key != "enabled" and value not in (None, ())
    }
    encoded = msgspec.json.encode(msgspec.to_builtins(set_values))
    return cast(dict[str, Any], msgspec.json.decode(encoded))


def error_line(error: Exception) -> str:
    """An error as one line; its class is named unless it is one of bad input."""
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    text = " ".join(text.split())
    is_bad_input = isinstance(error, ValueError | OSError)
    return text if text and is_bad_input else f"{type(error).__name__}: {text}"
