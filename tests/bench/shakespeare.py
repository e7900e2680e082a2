"""Seconds to a quality: `configs/shakespeare-char.yaml` and nanoGPT's documented CPU recipe.

Usage: `python tests/bench/shakespeare.py TEXT NANOGPT [ROUNDS]`, with tiny Shakespeare and a clone
of github.com/karpathy/nanoGPT. Prints one JSON object.

Both train on the first 90 % of the characters and are evaluated on all of the last 10 %, in full
windows of 64. Ours runs as the README shows, by `slm`, once per round with another seed. The peer
trains its 2,000 steps by its own train.py once; its time in a round is that of 200 steps, scaled to
2,000. Time is that of the training steps alone: evaluating and saving are left out of both.
"""

import json
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

NUM_STEPS = 2000
NUM_PROBE_STEPS = 200
CONTEXT = 64
EVAL_BATCH_SIZE = 256
TRAIN_SHARE = (9, 10)
RECIPE = {
    "device": "cpu",
    "compile": False,
    "dtype": "float32",
    "eval_iters": 1,
    "log_interval": 1,
    "block_size": CONTEXT,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "lr_decay_iters": NUM_STEPS,
    "dropout": 0.0,
}


class Run(NamedTuple):
    """Our training: its seconds, the validation loss at its end, and the tokens it read."""

    seconds: float
    val_loss: float
    num_tokens: int


def call_slm(*arguments: object) -> None:
    """Runs a command of `slm`; what it prints goes to standard error."""
    code = "from slm_fn.cli.main import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def split_index(text: str) -> int:
    """Returns the number of characters to train on."""
    numerator, denominator = TRAIN_SHARE
    return len(text) * numerator // denominator


def prepare(text_file: Path, folder: Path) -> None:
    """Writes both parts of the text, a character tokenizer and a pack that holds out the second."""
    text = text_file.read_text(encoding="utf-8")
    cut = split_index(text)
    text_folder = folder / "text"
    tokenizer_file = folder / "tokenizer.json"
    text_folder.mkdir()
    (text_folder / "train.txt").write_text(text[:cut], encoding="utf-8")
    (text_folder / "val.txt").write_text(text[cut:], encoding="utf-8")
    call_slm("tokenizer", "train", text_folder, "--kind", "char", "--out", tokenizer_file)
    pack = ["data", "pack", "--tokenizer", tokenizer_file, "--in", text_folder]
    held_out = ["--val-fraction", 0, "--val-name", "val.txt", "--seq-len", CONTEXT]
    call_slm(*pack, "--out", folder / "packed", *held_out)


def train(folder: Path, seed: int) -> Run:
    """Trains by the config of this project."""
    out = folder / f"run{seed}"
    command = ["pretrain", "shakespeare-char", "--data", folder / "packed", "--out", out]
    call_slm(*command, "--set", f"pretrain.train.seed={seed}")
    text = (out / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    seconds = 0.0
    num_tokens = 0
    for row in rows:
        seconds += (row["tokens"] - num_tokens) / row["tok_per_s"]
        num_tokens = row["tokens"]
    return Run(seconds, rows[-1]["val_loss"], num_tokens)


def prepare_peer(text_file: Path, nanogpt: Path) -> None:
    """Writes what the peer's prepare.py writes, which would download the text first."""
    text = text_file.read_text(encoding="utf-8")
    id_by_char = {char: i for i, char in enumerate(sorted(set(text)))}
    ids = np.array([id_by_char[char] for char in text], dtype=np.uint16)
    cut = split_index(text)
    folder = nanogpt / "data" / "shakespeare_char"
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(id_by_char)}))


def train_peer(nanogpt: Path, out: Path, num_steps: int) -> float:
    """Trains the peer for some steps; returns their seconds, scaled to `NUM_STEPS`."""
    settings = {**RECIPE, "max_iters": num_steps, "eval_interval": num_steps, "out_dir": out}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags]
    done = subprocess.run(command, check=True, cwd=nanogpt, capture_output=True, text=True)
    matches = re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", done.stdout)
    step_ms = [float(match) for match in matches]
    timed_ms = step_ms[1:-1]  # the first and the last step evaluate too
    return sum(timed_ms) / len(timed_ms) / 1000 * NUM_STEPS


def evaluate_peer(nanogpt: Path, out: Path) -> float:
    """Returns the peer's loss on all of the last 10 %."""
    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig

    checkpoint = torch.load(out / "ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"])).eval()
    model.load_state_dict(checkpoint["model"])
    val_file = nanogpt / "data" / "shakespeare_char" / "val.bin"
    ids = torch.from_numpy(np.fromfile(val_file, dtype=np.uint16).astype(int))
    num_targets = (len(ids) - 1) // CONTEXT * CONTEXT
    inputs = ids[:num_targets].view(-1, CONTEXT)
    targets = ids[1 : num_targets + 1].view(-1, CONTEXT)
    batches = zip(inputs.split(EVAL_BATCH_SIZE), targets.split(EVAL_BATCH_SIZE), strict=True)
    with torch.no_grad():
        losses = [model(x, y)[1].item() * len(x) for x, y in batches]
    return sum(losses) / len(inputs)


def main(text_file: Path, nanogpt: Path, num_rounds: int = 5) -> dict[str, object]:
    """Measures both and returns the figures."""
    runs: list[Run] = []
    peer_seconds: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(text_file, folder)
        prepare_peer(text_file, nanogpt)
        peer_seconds_full_run = train_peer(nanogpt, folder / "peer", NUM_STEPS)
        peer_loss = evaluate_peer(nanogpt, folder / "peer")
        for seed in range(num_rounds):
            runs.append(train(folder, seed))
            peer_seconds.append(train_peer(nanogpt, folder / "probe", NUM_PROBE_STEPS))
            print(f"round {seed}: {runs[-1]}, peer {peer_seconds[-1]:.1f} s", file=sys.stderr)
    shares = [run.seconds / peer for run, peer in zip(runs, peer_seconds, strict=True)]
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "val_loss": [round(run.val_loss, 4) for run in runs],
        "peer_seconds": statistics.median(peer_seconds),
        "peer_seconds_whole_run": peer_seconds_full_run,
        "peer_val_loss": round(peer_loss, 4),
        "share": statistics.median(shares),
        "shares": [round(share, 3) for share in shares],
        "tokens": runs[0].num_tokens,
        "rounds": num_rounds,
    }


if __name__ == "__main__":
    text_path, nanogpt_path, *counts = sys.argv[1:]
    print(json.dumps(main(Path(text_path), Path(nanogpt_path).resolve(), *map(int, counts))))
