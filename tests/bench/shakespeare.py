"""Seconds to a quality: `configs/shakespeare-char.yaml` beside nanoGPT's documented CPU recipe, in one run.

Usage: `python tests/bench/shakespeare.py TEXT NANOGPT [ROUNDS]`, with tiny Shakespeare and a clone of
github.com/karpathy/nanoGPT. Both train on the first 90 % of the characters and are judged on all of the last 10 %, in
whole windows of 64. Ours runs as the README says, by `slm`, once per round with another seed; the peer trains its 2,000
steps by its own train.py once, and each round's time for them is taken from 200 steps beside ours. Time is that of the
training steps; what is judged or saved is left out of both. Prints one JSON object.
"""

import json
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

STEPS, PROBE, CONTEXT = 2000, 200, 64
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
    "max_iters": STEPS,
    "lr_decay_iters": STEPS,
    "dropout": 0.0,
}


def slm(*arguments: object) -> None:
    code = "from slm_fn.cli.main import main; main()"
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, stdout=sys.stderr)


def prepare(text: Path, folder: Path) -> None:
    """Two files, cut at 90 % of the characters, a tokenizer of characters, and a pack that holds the second one out."""
    whole = text.read_text(encoding="utf-8")
    (folder / "text").mkdir()
    for name, part in {"train.txt": whole[: len(whole) * 9 // 10], "val.txt": whole[len(whole) * 9 // 10 :]}.items():
        (folder / "text" / name).write_text(part, encoding="utf-8")
    learn = ["--kind", "char", "--out", folder / "tokenizer.json"]
    slm("tokenizer", "train", folder / "text", *learn)
    held_out = ["--val-fraction", 0, "--val-name", "val.txt", "--seq-len", CONTEXT]
    slm(
        "data",
        "pack",
        "--tokenizer",
        folder / "tokenizer.json",
        "--in",
        folder / "text",
        "--out",
        folder / "packed",
        *held_out,
    )


def ours(folder: Path, seed: int) -> dict[str, float]:
    """One run of the config: its training time, and the loss it ends with."""
    run = folder / f"run{seed}"
    slm(
        "pretrain",
        "shakespeare-char",
        "--data",
        folder / "packed",
        "--out",
        run,
        "--set",
        f"pretrain.train.seed={seed}",
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = sum(
        (now["tokens"] - before) / now["tok_per_s"]
        for before, now in zip([0, *(x["tokens"] for x in lines)], lines, strict=False)
    )
    return {"seconds": seconds, "val_loss": lines[-1]["val_loss"], "tokens": lines[-1]["tokens"]}


def give(text: Path, nanogpt: Path) -> None:
    """What the peer's prepare.py writes, which would download the text first."""
    whole = text.read_text(encoding="utf-8")
    ids = {char: i for i, char in enumerate(sorted(set(whole)))}
    data, cut = np.array([ids[char] for char in whole], dtype=np.uint16), len(whole) * 9 // 10
    place = nanogpt / "data" / "shakespeare_char"
    data[:cut].tofile(place / "train.bin")
    data[cut:].tofile(place / "val.bin")
    (place / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(ids)}))


def peers(nanogpt: Path, out: Path, steps: int) -> float:
    """Seconds that the peer's training takes for `STEPS` steps, by the median of those it takes."""
    flags = [f"--{name}={value}" for name, value in {**RECIPE, "eval_interval": steps, "out_dir": out}.items()]
    flags = [flag if "max_iters" not in flag else f"--max_iters={steps}" for flag in flags]
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags]
    told = subprocess.run(command, check=True, cwd=nanogpt, capture_output=True, text=True).stdout
    times = [float(ms) for ms in re.findall(r"iter \d+: loss [\d.]+, time ([\d.]+)ms", told)]
    inner = times[1:-1]  # the first and the last evaluate too
    return sum(inner) / len(inner) / 1000 * STEPS


def judge(text: Path, nanogpt: Path, out: Path) -> float:
    """The peer's loss on all of the last 10 %."""
    sys.path.insert(0, str(nanogpt))
    from model import GPT, GPTConfig

    saved = torch.load(out / "ckpt.pt", weights_only=True)
    model = GPT(GPTConfig(**saved["model_args"])).eval()
    model.load_state_dict(saved["model"])
    ids = torch.from_numpy(np.fromfile(nanogpt / "data" / "shakespeare_char" / "val.bin", dtype=np.uint16).astype(int))
    rows = ids[: (len(ids) - 1) // CONTEXT * CONTEXT + 1]
    inputs, targets = rows[:-1].view(-1, CONTEXT), rows[1:].view(-1, CONTEXT)
    with torch.no_grad():
        losses = [model(x, y)[1].item() * len(x) for x, y in zip(inputs.split(256), targets.split(256), strict=True)]
    return sum(losses) / len(inputs)


def main(text: Path, nanogpt: Path, rounds: int = 5) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(text, folder)
        give(text, nanogpt)
        whole = peers(nanogpt, folder / "peer", STEPS)
        peer_loss = judge(text, nanogpt, folder / "peer")
        runs, probes = [], []
        for seed in range(rounds):
            runs.append(ours(folder, seed))
            probes.append(peers(nanogpt, folder / "probe", PROBE))
            print(f"round {seed}: {runs[-1]}, peer {probes[-1]:.1f} s", file=sys.stderr)
    return {
        "seconds": statistics.median(run["seconds"] for run in runs),
        "val_loss": [round(run["val_loss"], 4) for run in runs],
        "peer_seconds": statistics.median(probes),
        "peer_seconds_whole_run": whole,
        "peer_val_loss": round(peer_loss, 4),
        "share": statistics.median(run["seconds"] / probe for run, probe in zip(runs, probes, strict=True)),
        "shares": [round(run["seconds"] / probe, 3) for run, probe in zip(runs, probes, strict=True)],
        "tokens": runs[0]["tokens"],
        "rounds": rounds,
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    print(json.dumps(main(Path(given[0]), Path(given[1]).resolve(), *map(int, given[2:]))))
