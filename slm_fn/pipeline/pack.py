"""Stage: text files and a tokenizer to packed shards.

Invariant: a pack carries its tokenizer and that tokenizer's fingerprint; a killed pack of files goes on when it is
called again with the same files, tokenizer and settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from slm_fn.data import pack as packs
from slm_fn.data import sources
from slm_fn.data.holdout import SplitBy
from slm_fn.data.sources import Document
from slm_fn.pipeline import progress as shows
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer

SECONDS = 10.0
"""Between two lines of progress where no terminal shows a bar."""


class PackConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to cut a corpus: window and shard size in tokens, what is held out, worker processes (0: in this one)."""

    seq_len: int = 256
    shard_size: int = 1 << 24
    val_fraction: float = 0.05
    val_names: tuple[str, ...] = ()
    num_workers: int = 0
    split_by: SplitBy = "document"
    column: str = "text"


class Packed(NamedTuple):
    """What was packed, and how many things could not be read."""

    info: packs.PackInfo
    problems: int


def pack_files(
    config: PackConfig,
    tokenizer: Tokenizer,
    paths: Sequence[Path | str],
    out: Path | str,
    strict: bool = False,
    live: bool | None = None,
    note: Callable[[str], None] | None = None,
) -> Packed:
    """Pack files and folders. What cannot be read is told and counted, and the rest is packed.

    Args:
        strict: stop at the first thing that cannot be read.
        live: a bar, or plain lines; by default a bar on a terminal.
        note: takes the lines for a person; by default they stand among the progress.

    Raises:
        FileNotFoundError: a path leads nowhere.
        ValueError: nothing to pack; with `strict`, whatever cannot be read.
    """
    named = sources.named(paths, _quiet)
    stats = [Path(file).stat() for _, file in named]
    meter = shows.Meter([shows.Input(name, s.st_size) for (name, _), s in zip(named, stats, strict=True)])
    files = [(name, file, s.st_size, s.st_mtime_ns) for (name, file), s in zip(named, stats, strict=True)]
    problems = 0
    with shows.display("pack", meter.total, live, SECONDS) as display, shows.counted(note or display.note) as tell:
        say = note or display.note

        def problem(line: str) -> None:
            nonlocal problems
            problems += 1
            tell(line)

        documents = meter.watch(sources.read(paths, None if strict else problem, column=config.column))
        update = _speed(display, meter, say)
        try:
            info = _pack(config, tokenizer, documents, out, say, repr((files, config.column)), update)
        except KeyboardInterrupt:
            say("what is packed is kept: the same command goes on from there")
            raise
    if problems:
        say(f"{problems} things could not be read, or were empty (told above); the rest is packed")
    return Packed(info, problems)


def pack_documents(
    config: PackConfig,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    out: Path | str,
    note: Callable[[str], None] | None = None,
) -> packs.PackInfo:
    """Encode documents, each behind the start token, into shards under `out`."""
    return _pack(config, tokenizer, documents, out, note or _quiet)


def _pack(
    config: PackConfig,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    out: Path | str,
    note: Callable[[str], None],
    inputs: str = "",
    progress: Callable[[packs.Progress], None] | None = None,
) -> packs.PackInfo:
    if tokenizer.dropout:
        raise ValueError(
            f"the tokenizer drops merges at random (dropout {tokenizer.dropout:g}), and no two packs would be alike; "
            "set dropout to null in its JSON"
        )
    if tokenizer.engine.slow:
        note(f"encoding with {tokenizer.engine.name}, which is slower (--workers may help): {tokenizer.engine.reason}")
    info = packs.pack(
        documents,
        tokenizer.encode_flat,
        out,
        eos=tokenizer.special(ChatTemplate().bos),
        seq_len=config.seq_len,
        shard_size=config.shard_size,
        val_fraction=config.val_fraction,
        val_names=config.val_names,
        split_by=config.split_by,
        workers=config.num_workers,
        tokenizer_json=tokenizer.to_json(),
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        inputs=inputs,
        progress=progress,
    )
    for line in _advice(config, info):
        note(line)
    return info


def _advice(config: PackConfig, info: packs.PackInfo) -> Iterable[str]:
    """What someone who asked for a held-out part should know about it."""
    val, asked = info.splits["val"], config.val_fraction > 0 and not config.val_names
    if asked and not val.documents:
        what, other = (
            ("block of the text", "")
            if config.split_by == "block"
            else (
                f"one of {info.splits['train'].documents} document(s)",
                "hold out blocks of text with --split-by block, a document by name with --val-name, or ",
            )
        )
        yield (
            f"note: nothing was held out, no {what} falls into a share of {config.val_fraction:g}, and there will be "
            f"no validation loss; {other}raise --val-fraction"
        )
    elif val.documents and val.tokens <= config.seq_len:
        yield (
            f"note: the {val.tokens} tokens held out are less than one window of {config.seq_len + 1}; there will be "
            "no validation loss. Hold out more with --val-fraction, or lower --seq-len"
        )


def _speed(display: shows.Display, meter: shows.Meter, say: Callable[[str], None]) -> Callable[[packs.Progress], None]:
    first: tuple[float, packs.Progress] | None = None
    began = time.monotonic()

    def update(now: packs.Progress) -> None:
        nonlocal first
        if now.pieces and not meter.done:  # nothing is read yet
            say(f"going on where it stopped: {now.tokens / 1e6:,.1f}M tokens are packed; reading up to there")
            return
        start, done = first or (began, now._replace(num_bytes=0))
        rate = (now.num_bytes - done.num_bytes) / max(1e-9, time.monotonic() - start) / 1e6
        first = first or (time.monotonic(), now)  # what an earlier call packed is not this one's speed
        display.update(meter.done, f"{now.pieces:,} documents, {now.tokens / 1e6:,.1f}M tokens, {rate:,.1f} MB/s")

    return update


def _quiet(line: Any) -> None:
    """Nobody wants to know."""
