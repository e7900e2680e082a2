"""Stage: text files and a tokenizer to packed shards.

Invariant: a pack holds its tokenizer and that tokenizer's fingerprint; a killed pack of files
resumes when it is started again with the same files, tokenizer and settings.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from slm_fn.data.io import documents as sources
from slm_fn.data.io.documents import Document
from slm_fn.data.io.holdout import SplitBy
from slm_fn.data.pack import build
from slm_fn.data.pack.build import PackSettings, PackTokenizer
from slm_fn.data.pack.dataset import PackInfo
from slm_fn.data.pack.writer import PackProgress
from slm_fn.pipeline.progress import (
    InputFile,
    InputProgress,
    ProgressDisplay,
    limit_notes,
    show_progress,
)
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer

LINE_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""

Note = Callable[[str], None]


class PackConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How to cut a corpus: window and shard size in tokens, what is held out, worker processes.

    `num_workers` 0 encodes in this process.
    """

    seq_len: int = 256
    shard_size: int = 1 << 24
    val_fraction: float = 0.05
    val_names: tuple[str, ...] = ()
    num_workers: int = 0
    split_by: SplitBy = "document"
    column: str = "text"


class PackResult(NamedTuple):
    """The pack's metadata, and how many inputs could not be read."""

    info: PackInfo
    problems: int


def pack_files(
    config: PackConfig,
    tokenizer: Tokenizer,
    paths: Sequence[Path | str],
    out: Path | str,
    strict: bool = False,
    live: bool | None = None,
    note: Note | None = None,
) -> PackResult:
    """Pack files and folders. Unreadable inputs are reported and counted, the rest is packed.

    Args:
        strict: raise at the first unreadable input.
        live: draw a bar, or print plain lines; None asks whether there is a terminal.
        note: called with the lines for the user; None prints them beside the progress.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: nothing to pack; with `strict`, an unreadable input.
    """
    inputs = list(_stat_inputs(paths))
    meter = InputProgress([InputFile(name, size) for name, _, size, _ in inputs])
    num_problems = 0
    with (
        show_progress("pack", meter.total, live, LINE_SECONDS) as display,
        limit_notes(note or display.note) as report,
    ):
        print_note = note or display.note

        def count_problem(line: str) -> None:
            nonlocal num_problems
            num_problems += 1
            report(line)

        problem = None if strict else count_problem
        documents = meter.watch(sources.read(paths, problem, column=config.column))
        progress = _progress_reporter(display, meter, print_note)
        job = repr((inputs, config.column))
        try:
            info = _pack(config, tokenizer, documents, out, print_note, job, progress)
        except KeyboardInterrupt:
            print_note("what is packed is kept: the same command resumes there")
            raise
    if num_problems:
        print_note(
            f"{num_problems} inputs could not be read, or were empty (reported above); "
            "the rest is packed"
        )
    return PackResult(info, num_problems)


def _stat_inputs(paths: Sequence[Path | str]) -> Iterator[tuple[str, str, int, int]]:
    """(document name, path, size, modification time) of every input file."""
    for name, file in sources.list_named_files(paths, _ignore):
        stat = Path(file).stat()
        yield name, file, stat.st_size, stat.st_mtime_ns


def pack_documents(
    config: PackConfig,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    out: Path | str,
    note: Note | None = None,
) -> PackInfo:
    """Encode documents, each after the start token, into shards under `out`."""
    return _pack(config, tokenizer, documents, out, note or _ignore)


def _pack(
    config: PackConfig,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    out: Path | str,
    note: Note,
    inputs: str = "",
    progress: Callable[[PackProgress], None] = lambda progress: None,
) -> PackInfo:
    if tokenizer.dropout:
        raise ValueError(
            f"the tokenizer drops merges at random (dropout {tokenizer.dropout:g}), and no two "
            "packs would be equal; set dropout to null in its JSON"
        )
    backend = tokenizer.encoder_backend
    if backend.is_slow:
        note(
            f"encoding with {backend.name}, which is slower (--workers may help): {backend.reason}"
        )
    pack_tokenizer = PackTokenizer(
        encode_flat=tokenizer.encode_flat,
        vocab_size=tokenizer.vocab_size,
        eos=tokenizer.special_id(ChatTemplate().bos),
        json=tokenizer.to_json(),
        fingerprint=tokenizer.fingerprint,
    )
    settings = PackSettings(
        seq_len=config.seq_len,
        shard_size=config.shard_size,
        val_fraction=config.val_fraction,
        val_names=config.val_names,
        split_by=config.split_by,
    )
    info = build.pack(
        documents, pack_tokenizer, settings, out, config.num_workers, inputs, progress
    )
    for line in _validation_notes(config, info):
        note(line)
    return info


def _validation_notes(config: PackConfig, info: PackInfo) -> Iterator[str]:
    """Why a run on this pack will have no validation loss, though a share was to be held out."""
    val = info.splits["val"]
    wants_share = config.val_fraction > 0 and not config.val_names
    if wants_share and not val.documents:
        if config.split_by == "block":
            unit = "block of the text"
            alternatives = ""
        else:
            unit = f"one of {info.splits['train'].documents} document(s)"
            alternatives = (
                "hold out blocks of text with --split-by block, "
                "a document by name with --val-name, or "
            )
        yield (
            f"note: nothing was held out, no {unit} falls into a share of "
            f"{config.val_fraction:g}, and there will be no validation loss; "
            f"{alternatives}raise --val-fraction"
        )
    elif val.documents and val.tokens <= config.seq_len:
        yield (
            f"note: the {val.tokens} tokens held out are less than one window of "
            f"{config.seq_len + 1}; there will be no validation loss. "
            "Hold out more with --val-fraction, or lower --seq-len"
        )


def _progress_reporter(
    display: ProgressDisplay, meter: InputProgress, note: Note
) -> Callable[[PackProgress], None]:
    """Show chunks, tokens and speed. The speed excludes what an earlier call packed."""
    started = time.monotonic()
    first: tuple[float, PackProgress] | None = None

    def report(now: PackProgress) -> None:
        nonlocal first
        is_resumed = now.num_chunks and not meter.done
        if is_resumed:
            note(
                f"resuming: {now.tokens / 1e6:,.1f}M tokens are packed; reading up to that position"
            )
            return
        start, before = first or (started, now._replace(num_bytes=0))
        seconds = max(1e-9, time.monotonic() - start)
        rate = (now.num_bytes - before.num_bytes) / seconds / 1e6
        if first is None:
            first = (time.monotonic(), now)
        figures = f"{now.num_chunks:,} documents, {now.tokens / 1e6:,.1f}M tokens, {rate:,.1f} MB/s"
        display.update(meter.done, figures)

    return report


def _ignore(line: str) -> None:
    pass
