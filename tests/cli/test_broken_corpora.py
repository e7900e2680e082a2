"""`slm tokenizer train` and `slm data pack` over broken files: one line each, the rest is kept."""

import gzip
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pyarrow
from pyarrow import parquet

ROWS = [f"Row {number} of a file, with words to merge and é.\n" for number in range(400)]
JSON = "".join(json.dumps({"text": row}) + "\n" for row in ROWS).encode()
CUT = gzip.compress(JSON)[:-300]
KEPT = zlib.decompressobj(31).decompress(CUT)
COMMANDS = """
import os, sys
from slm_fn.cli.main import cli
for folder in ("sound", "broken"):
    os.chdir(folder)
    for command in (
        "tokenizer train in twin --out out/tokenizer.json --vocab-size 280 --json",
        "data pack --tokenizer out/tokenizer.json --in in --in twin --out out/pack --seq-len 32"
        " --json",
    ):
        cli.main(command.split(), standalone_mode=False)
        print("===", file=sys.stderr)
    os.chdir("..")
"""

# Root ignores file permissions unless it drops these capabilities.
BOUND = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


def table(path: Path, texts: list[str]) -> None:
    parquet.write_table(
        pyarrow.table({"text": texts}), path, row_group_size=100, use_dictionary=False
    )


def sound(folder: Path) -> None:
    """Write the readable contents of the broken corpus, in files of the same names."""
    for name in ("in", "twin", "out"):
        (folder / name).mkdir(parents=True)
    (folder / "in/a.txt").write_text("".join(ROWS))
    (folder / "twin/a.txt").write_text("A second file of the name.\n")
    (folder / "in/cut.jsonl.gz").write_bytes(gzip.compress(KEPT[: KEPT.rindex(b"\n")]))
    table(folder / "in/hole.parquet", ROWS[:100] + ROWS[200:])
    (folder / "in/latin.txt").write_text("caf")
    (folder / "in/long.jsonl").write_bytes(b"\n" + JSON[: JSON.index(b'{"text": "Row 9')])
    (folder / "in/mixed.jsonl").write_bytes(b'{"text": "kept"}\n\n{"text": "a\\u0000b"}\n')


def broken(folder: Path) -> None:
    sound(folder)
    (folder / "in/cut.jsonl.gz").write_bytes(CUT)
    table(folder / "in/cut.parquet", ROWS)
    (folder / "in/cut.parquet").write_bytes((folder / "in/cut.parquet").read_bytes()[:-50])
    table(folder / "in/hole.parquet", ROWS)
    data = bytearray((folder / "in/hole.parquet").read_bytes())
    offset = (
        parquet.ParquetFile(folder / "in/hole.parquet")
        .metadata.row_group(1)
        .column(0)
        .data_page_offset
    )
    data[offset : offset + 40] = b"\xff" * 40
    (folder / "in/hole.parquet").write_bytes(data)
    (folder / "in/latin.txt").write_bytes("café au lait".encode("latin-1"))
    with (folder / "in/long.jsonl").open("wb") as file:
        file.write(
            b'{"text": "' + b"x" * 100_000_000 + b'"}\n' + JSON[: JSON.index(b'{"text": "Row 9')]
        )
    (folder / "in/mixed.jsonl").write_bytes(
        b'{"text": "kept"}\n[1]\n{"text": "a\\u0000b"}\n{"text": "\\ud800"}\n'
    )
    (folder / "in/empty.md").write_bytes(b"")
    (folder / "in/picture.txt").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    os.mkfifo(folder / "in/pipe.txt")
    (folder / "in/closed").mkdir()
    (folder / "in/closed/b.txt").write_text("secret")
    (folder / "in/closed").chmod(0)


REPORTED = [
    "a.txt", "closed", "pipe.txt", "cut.jsonl.gz", "cut.parquet", "empty.md", "hole.parquet",
    "latin.txt", "long.jsonl", "mixed.jsonl, line 2", "mixed.jsonl, line 4", "picture.txt",
]  # fmt: skip


def test_every_problem_is_reported_once_and_the_rest_makes_the_same_pack(tmp_path):
    broken_folder, sound_folder = tmp_path / "broken", tmp_path / "sound"
    broken(broken_folder)
    sound(sound_folder)
    done = subprocess.run(
        [*BOUND, sys.executable, "-c", COMMANDS],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    (broken_folder / "in/closed").chmod(0o700)
    assert done.returncode == 0, done.stderr
    for errors in done.stderr.split("===")[2:4]:
        for name in REPORTED:
            assert sum(name in line for line in errors.splitlines()) == 1, name
    assert (broken_folder / "out/tokenizer.json").read_bytes() == (
        sound_folder / "out/tokenizer.json"
    ).read_bytes()
    shards = sorted(
        path.relative_to(broken_folder) for path in (broken_folder / "out").rglob("*.bin")
    )
    assert shards
    for path in shards:
        assert (broken_folder / path).read_bytes() == (sound_folder / path).read_bytes()
