"""Fixtures: `project`, all the files that a tiny model is trained from, and `two_packs`."""

from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from slm_fn import config as configs
from slm_fn.config import TokenizerConfig
from slm_fn.data.io import documents as sources
from slm_fn.pipeline.stages.pack import PackConfig, pack_documents
from slm_fn.pipeline.stages.train_tokenizer import train_from_files
from slm_fn.text.tokenizer import Tokenizer

SMALL = {
    "model": {
        "dim": 32,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "ffn_dim": 64,
        "context": 64,
    },
    "pretrain": {
        "optim": {"name": "muon", "learning_rate": 1e-2, "warmup_steps": 2, "ema_decay": 0.9},
        "train": {
            "total_steps": 12,
            "batch_size": 4,
            "accumulate": 2,
            "log_every": 2,
            "eval_every": 6,
            "save_every": 3,
        },
    },
    "sft": {"train": {"total_steps": 6, "batch_size": 4, "log_every": 2, "save_every": 3}},
    "dpo": {"train": {"total_steps": 6, "batch_size": 4, "log_every": 2, "save_every": 3}},
}
WORDS = ("the king", "a fool", "my lord", "sweet night", "no more", "to be")


class TinyProject(NamedTuple):
    """The files of a project, and the config of its model."""

    root: Path
    config: configs.Config
    config_file: Path
    text: Path
    tokenizer: Path
    pack: Path
    chat: Path
    pairs: Path


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> TinyProject:
    root = tmp_path_factory.mktemp("project")
    text = root / "text"
    text.mkdir()
    for i in range(8):
        lines = [
            f"{WORDS[(i + j) % 6]} and {WORDS[(i * j) % 6]}, {WORDS[j % 5]}.\n" for j in range(60)
        ]
        (text / f"play-{i}.md").write_text("".join(lines))
    train_from_files(TokenizerConfig(vocab_size=320), [text], root / "tokenizer.json")
    pack_documents(
        PackConfig(seq_len=64, val_fraction=0.0, val_names=("play-7.md",)),
        Tokenizer.load(root / "tokenizer.json"),
        sources.read([text]),
        root / "pack",
    )
    turns = [(f"who is {w}?", f"{w} is here.") for w in WORDS] * 3
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in turns
    ]
    (root / "chat.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    pairs = [
        {"prompt": q, "chosen": a, "rejected": turns[(i + 1) % 6][1]}
        for i, (q, a) in enumerate(turns)
    ]
    (root / "pairs.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in pairs))
    (root / "small.json").write_bytes(msgspec.json.encode(SMALL))
    config = configs.load(root / "small.json")
    return TinyProject(
        root,
        config,
        root / "small.json",
        text,
        root / "tokenizer.json",
        root / "pack",
        root / "chat.jsonl",
        root / "pairs.jsonl",
    )


@pytest.fixture(scope="session")
def two_packs(project, tmp_path_factory) -> list[Path]:
    """Two packs of other plays, by the project's tokenizer, each with a play held out."""
    out = tmp_path_factory.mktemp("packs")
    tokenizer = Tokenizer.load(project.tokenizer)
    documents = list(sources.read([project.text]))
    for name, part in (("a", documents[:5]), ("b", documents[5:])):
        pack_documents(
            PackConfig(seq_len=64, val_names=(part[0].name,)), tokenizer, part, out / name
        )
    return [out / "a", out / "b"]
