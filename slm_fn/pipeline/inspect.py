"""Look into data, whatever it is: packs, prepared corpora, texts, conversations, preference pairs.

Invariant: shows the masks, windows and boundaries that training reads, made by the same functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec
import numpy as np

from slm_fn.core import files
from slm_fn.data import pack as packs
from slm_fn.data import pairs, parts, sources, stream
from slm_fn.data.pack import Pack
from slm_fn.data.pairs import ChatExample
from slm_fn.pipeline import inspect_tokenizer, lengths, plot, sft
from slm_fn.pipeline.export import Found, find
from slm_fn.pipeline.model import TOKENIZER
from slm_fn.pipeline.plot import Panel
from slm_fn.text import chat as chats
from slm_fn.text.tokenizer import Tokenizer

T = TypeVar("T")
Kind = Literal["pack", "prepared", "text", "chat", "pairs"]
SAMPLE = 100_000
"""Documents of a prepared corpus whose lengths are looked at; its counts are those of all."""
COUNTED = {
    "read": "documents read",
    "kept": "documents kept",
    "changed": "of these changed",
    "bytes_read": "bytes read",
    "bytes_kept": "bytes kept",
}
"""Fields of `parts.Counts` and what they are called."""
PROBLEMS = 20
SHOWN = 500
"""Characters of a sample."""
TOGETHER = 512
CHUNK = 1 << 20


class Seen(NamedTuple):
    """What was found: figures and samples as plain JSON values, the lengths behind them, and pictures."""

    kind: Kind
    figures: dict[str, Any]
    samples: list[dict[str, Any]]
    lengths: dict[str, lengths.Lengths]
    panels: list[Panel]


def inspect(path: Path, num: int = 3, tokenizer: Path | None = None) -> Seen:
    """Look at a path, which tells itself what it holds.

    Args:
        num: samples to show.
        tokenizer: a tokenizer's file, or a pack or model that has one; needed for chat data and pairs.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: data that cannot be read, or chat data without a tokenizer.
    """
    kind = kind_of(path)
    if kind == "pack":
        return pack(path, num)
    if kind == "prepared":
        return prepared(path, num)
    told = None if tokenizer is None else find(tokenizer)
    if kind == "text":
        return texts(path, num, told and told.tokenizer)
    if told is None:
        raise ValueError(f"{path}: chat data is shown token by token; name a tokenizer with --tokenizer")
    return talks(kind, path, num, told)


def kind_of(path: Path) -> Kind:
    """What lies at a path, by its metadata or its first record.

    Raises:
        FileNotFoundError: there is nothing at the path.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file or folder at {path}")
    if path.is_dir():
        if (path / packs.METADATA).is_file() and b'"splits"' in (path / packs.METADATA).read_bytes():
            return "pack"
        if _sources(path):
            return "prepared"
    try:
        first = next(sources.rows(sources.files_of(path)[0]), {})
    except ValueError:
        return "text"
    return "chat" if "messages" in first else "pairs" if first.keys() >= {"chosen", "rejected"} else "text"


def _sources(path: Path) -> dict[Path, parts.Metadata | parts.State]:
    """The prepared sources at a path, itself or folders in it, and what they say; nothing there is touched."""
    found: dict[Path, parts.Metadata | parts.State] = {}
    for folder in [path, *sorted(file for file in path.iterdir() if file.is_dir())]:
        told = _decoded(folder / parts.METADATA, parts.Metadata) or _decoded(folder / parts.STATE, parts.State)
        if told is not None:
            found[folder] = told
    return found


def _decoded(file: Path, kind: type[T]) -> T | None:
    with suppress(FileNotFoundError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=kind)
    return None


def pack(path: Path, num: int) -> Seen:
    """Counts, document lengths and checksums of a pack (every shard is verified), and decoded windows of each split."""
    opened = packs.open_pack(path, verify=True)
    tokenizer = Tokenizer.load(path / TOKENIZER)
    packs.check_tokenizer(opened, tokenizer.fingerprint)
    info = opened.info
    figures: dict[str, Any] = {"vocab_size": info.vocab_size, "dtype": info.dtype, "seq_len": info.seq_len}
    figures["fingerprint"] = info.fingerprint
    samples: list[dict[str, Any]] = []
    total = sum(split.tokens for split in info.splits.values())
    found: dict[str, lengths.Lengths] = {}
    counts, drawn = np.zeros(info.vocab_size, dtype=np.int64), []
    for name, split in info.splits.items():
        figures |= {f"{name}: documents": split.documents, f"{name}: tokens": split.tokens}
        figures[f"{name}: bytes"] = split.num_bytes
        figures[f"{name}: share of tokens"] = round(split.tokens / total, 4)
        figures[f"{name}: bytes per token"] = round(split.num_bytes / max(1, split.tokens), 3)
        figures[f"{name}: shards, checksums right"] = len(split.shards)
        inside, counted = _documents(opened, name)
        counts += counted
        if len(inside):
            found[f"{name}: document"] = lengths.measure(inside)
            figures[f"{name}: boundaries found"] = len(inside)
            drawn.append(inside)
        for i in range(min(num, stream.num_windows(opened, name))):
            row = stream.lm_batch(opened, name, 0, i, 1).tokens[0].tolist()
            samples.append({"split": name, "window": i, "text": tokenizer.decode(row)})
    figures["tokens of the vocabulary that never occur"] = int((counts == 0).sum())
    panels = [plot.lengths(np.concatenate(drawn), "documents", "tokens"), plot.ranks(counts)]
    return Seen("pack", figures, samples, found, panels)


def _documents(opened: Pack, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each document of a split, start token included, and how often each token occurs."""
    starts, counts, place = [], np.zeros(opened.info.vocab_size, dtype=np.int64), 0
    for shard in opened.shards[split]:
        for begin in range(0, len(shard), CHUNK):
            part = shard[begin : begin + CHUNK]
            starts.append(np.flatnonzero(part == opened.info.eos) + place)
            counts += np.bincount(part, minlength=len(counts))
            place += len(part)
    return np.diff(np.concatenate([*starts, [place]]).astype(np.int64)), counts


def prepared(path: Path, num: int) -> Seen:
    """What was read, kept and removed by which rule, source by source; checksums; lengths of the first documents."""
    figures: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    found: dict[str, lengths.Lengths] = {}
    removed: dict[str, int] = {}
    drawn: list[int] = []
    for folder, told in _sources(path).items():
        counts, name = told.counts, folder.name
        figures[f"{name}: status"] = "finished" if isinstance(told, parts.Metadata) else "under way"
        figures |= {f"{name}: {key}": getattr(counts, field) for field, key in COUNTED.items()}
        if isinstance(told, parts.Metadata):
            figures[f"{name}: tokens, estimated"] = told.tokens_estimated
        for why, number in {**counts.removed, **counts.dropped, "could not be read": counts.problems}.items():
            if number:
                figures[f"{name}: removed, {why}"] = number
                removed[why] = removed.get(why, 0) + number
        wrong = [part.file for part in told.parts if files.checksum(folder / part.file) != part.sha256]
        if wrong:
            raise ValueError(f"{folder / wrong[0]} has another checksum than when it was written; prepare it again")
        figures[f"{name}: part files, checksums right"] = len(told.parts)
        rows = (_text_of(row) for part in told.parts for row in sources.rows(folder / part.file))
        sizes: list[int] = []
        for text in islice(rows, SAMPLE):
            if len(sizes) < num:
                samples.append({"source": name, "text": text[:SHOWN]})
            sizes.append(len(text.encode()))
        if sizes:
            found[f"{name}: document"] = lengths.measure(sizes)
            drawn += sizes
    panels = [plot.lengths(drawn, "documents", "bytes")] if drawn else []
    panels += [plot.counts(removed, "Removed or repaired, by reason", "documents")] if removed else []
    return Seen("prepared", figures, samples, found, panels)


def _text_of(row: dict[str, Any]) -> str:
    """A record's text; of a conversation or a pair, what is said."""
    if "text" in row:
        return str(row["text"])
    said = [message for part in ("messages", "prompt", "chosen", "rejected") for message in row.get(part, ())]
    return "\n".join(message["content"] for message in said)


def texts(path: Path, num: int, tokenizer: Tokenizer | None) -> Seen:
    """Counts and lengths of a corpus of texts, and what cannot be read; with a tokenizer its tokens and compression."""
    problems: list[str] = []
    sizes: list[int] = []
    samples: list[dict[str, Any]] = []
    sums = {"characters": 0, "lines": 0}

    def watched() -> Iterator[sources.Document]:
        for document in sources.read([path], problems.append):
            size = len(document.text.encode())
            if document.part:
                sizes[-1] += size
            else:
                sizes.append(size)
            sums["characters"] += len(document.text)
            sums["lines"] += document.text.count("\n")
            if len(samples) < num and not document.part:
                samples.append({"name": document.name, "text": document.text[:SHOWN]})
            yield document

    panels: list[Panel] = []
    figures: dict[str, Any] = {}
    if tokenizer is None:
        for _ in watched():
            pass
    else:
        measured = inspect_tokenizer.measure(tokenizer, watched())
        figures = {"tokens": measured.tokens, "bytes_per_token": round(sum(sizes) / max(1, measured.tokens), 3)}
        figures["round_trip"] = not measured.altered
        panels = [plot.ranks(measured.counts), plot.compression(measured.num_bytes, measured.num_tokens)]
    figures = {"documents": len(sizes), "bytes": sum(sizes), **sums, **figures, "problems": len(problems)}
    figures["first_problems"] = problems[:PROBLEMS]
    found = {"document": lengths.measure(sizes)}
    return Seen("text", figures, samples, found, [plot.lengths(sizes, "documents", "bytes"), *panels])


def talks(kind: Literal["chat", "pairs"], path: Path, num: int, told: Found) -> Seen:
    """Lengths and the share that is trained; the first rows token by token: text, and whether the loss counts it."""
    names = ("conversation",) if kind == "chat" else ("chosen", "rejected")
    sides: list[list[ChatExample]] = [[] for _ in names]
    rows = _talks(kind, path)
    while some := list(islice(rows, TOGETHER)):
        for side, talk in zip(sides, zip(*some, strict=True), strict=True):
            part = [sft.messages_of(messages) for messages in talk]
            rendered = chats.render_batch(told.template or chats.ChatTemplate(), told.tokenizer, part)
            side += [pairs.compact(ChatExample(*row)) for row in rendered]
    figures: dict[str, Any] = {}
    found, panels = {}, []
    for name, examples in zip(names, sides, strict=True):
        inside = [len(example.ids) for example in examples]
        figures |= {f"{name}: {key}": value for key, value in pairs.report(examples)._asdict().items()}
        found[name] = lengths.measure(inside)
        panels.append(plot.lengths(inside, "conversations" if kind == "chat" else f"{name} answers", "tokens"))
    trained = [sum(example.mask[1:]) / max(1, len(example.ids) - 1) for example in sides[0]]
    panels.append(plot.shares(trained, f"{names[0]}s" if kind == "chat" else names[0], "tokens that are trained"))
    samples = [
        _coloured(told.tokenizer, name, example)
        for row in islice(zip(*sides, strict=True), num)
        for name, example in zip(names, row, strict=True)
    ]
    return Seen(kind, figures, samples, found, panels)


def _talks(kind: Literal["chat", "pairs"], path: Path) -> Iterator[tuple[Sequence[sources.Message], ...]]:
    """Each row as the conversations it holds: one, or prompt and chosen, prompt and rejected."""
    if kind == "chat":
        return ((row.messages,) for row in sources.read_chat([path], sft.check_messages))
    both = sources.read_pairs([path], sft.check_messages)
    return (((*row.prompt, *row.chosen), (*row.prompt, *row.rejected)) for row in both)


def _coloured(tokenizer: Tokenizer, name: str, example: ChatExample) -> dict[str, Any]:
    names = {i: special for special, i in tokenizer.specials.items()}
    tokens = [
        {"text": names.get(i) or tokenizer.token_bytes(i).decode(errors="replace"), "trained": bool(m)}
        for i, m in zip(example.ids, example.mask, strict=True)
    ]
    return {"name": name, "tokens": tokens, "trained": sum(example.mask)}
