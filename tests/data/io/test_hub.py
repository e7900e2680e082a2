"""The hub: a real `datasets` against a small HTTP server with the hub's API, and failures."""

import http.server
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow
import pytest
from pyarrow import parquet

from slm_fn.data.io import hub

SHA, TOKEN = "a" * 40, "hf_averysecrettoken"
FILES = {
    f"data-{part}.jsonl": b"".join(
        b'{"text": "row %d"}\n' % row for row in range(part * 1500, part * 1500 + 1500)
    )
    for part in range(3)
}


class Hub(http.server.BaseHTTPRequestHandler):
    """`org/set` works, but for two files only at the third attempt; others are refused."""

    protocol_version = "HTTP/1.1"
    requests: Counter[str]
    tokens: set[str | None]

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.tokens.add(self.headers.get("Authorization"))
        path = self.path.split("?")[0]
        self.requests[f"{self.command} {path}"] += 1
        if "org/gated" in path:
            self.answer(
                401, b"{}", X_Error_Code="GatedRepo", X_Error_Message=f"no entry for {TOKEN}"
            )
        elif "org/none" in path:
            self.answer(404, b"{}", X_Error_Code="RepoNotFound")
        elif "org/down" in path:
            self.answer(520)
        elif "/tree/" in path:
            self.answer(
                200,
                json.dumps(
                    [{"type": "file", "path": f, "size": len(FILES[f]), "oid": SHA} for f in FILES]
                ),
            )
        elif path.startswith("/api/datasets/org/set"):
            self.answer(
                200,
                json.dumps(
                    {"id": "org/set", "sha": SHA, "siblings": [{"rfilename": f} for f in FILES]}
                ),
            )
        elif path.endswith(".jsonl"):
            self.file(path.rsplit("/", 1)[1], self.requests[f"{self.command} {path}"])
        else:
            self.answer(404, b"{}", X_Error_Code="EntryNotFound")

    def file(self, name: str, attempt: int) -> None:
        data, byte_range = (
            FILES[name],
            re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""),
        )
        start, end = (
            (int(byte_range[1]), int(byte_range[2] or len(data) - 1) + 1)
            if byte_range
            else (0, len(data))
        )
        if self.command == "GET" and name != "data-0.jsonl" and attempt <= 2:
            self.answer(520, f"the edge has lost {TOKEN}")
        else:
            tags = {
                "ETag": f'"{SHA}"',
                "X_Repo_Commit": SHA,
                "Content_Range": f"bytes {start}-{end - 1}/{len(data)}",
            }
            self.answer(206 if byte_range else 200, data[start:end], **tags)

    def answer(self, status: int, body: bytes | str = b"", **headers: str) -> None:
        body = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


PROGRAM = """
import json
from slm_fn.data.io import hub
found = {}
for name, settings in json.loads(input()):
    problems, waits, rows = [], [], []
    retry = hub.RetryPolicy(2, problems.append, waits.append)
    try:
        for row in hub.read_rows(hub.HubDataset(name), retry=retry, **settings):
            rows.append(row["text"])
        error = ""
    except ValueError as caught:
        error = str(caught)
    found[name + json.dumps(settings)] = [rows, problems, waits, error]
print(json.dumps(found))
"""


def read_in_process(*cases: Any, cwd: Path, **environment: str) -> tuple[list[Any], str]:
    """Run `hub.read_rows` in its own process: huggingface_hub reads its settings when imported."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        cwd=cwd,
        check=True,
        timeout=120,
        env=os.environ | {"HF_HOME": str(cwd / "home"), "HF_TOKEN": TOKEN, **environment},
    )
    return list(json.loads(done.stdout.splitlines()[-1]).values()), done.stdout + done.stderr


@pytest.fixture
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    Hub.requests, Hub.tokens = Counter(), set()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def test_the_hub_is_read_through_failures_and_refusals_are_clear(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    cases = [
        ("org/set", {}),
        ("org/set", {"skip": 4000}),
        ("org/gated", {}),
        ("org/none", {}),
        ("org/down", {}),
    ]
    found, output = read_in_process(
        *cases, cwd=tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}"
    )
    full, later, gated, none, down = found
    assert full[0] == [f"row {number}" for number in range(4500)]
    assert full[2] == [1, 2, 1, 2]  # seconds; a row between two failures begins anew
    assert [line.split(" (")[0] for line in full[1]] == [
        "org/set: connection lost at row 1500"
    ] * 2 + ["org/set: connection lost at row 3000"] * 2
    assert later[0] == full[0][4000:]
    assert (
        "accept its terms at huggingface.co/datasets/org/gated, "
        "then set HF_TOKEN or run `hf auth login`" in gated[3]
    )
    assert none[3].startswith("org/none: ")
    assert (
        "check the name; if it is private or gated, set HF_TOKEN or run `hf auth login`" in none[3]
    )
    assert gated[2] == none[2] == []  # a refusal is not asked again
    assert "gave up after 3 attempts; check the network" in down[3]
    assert down[2] == [1, 2]
    assert all("\n" not in line for case in found for line in (*case[1], case[3]))
    assert f"Bearer {TOKEN}" in Hub.tokens
    assert TOKEN not in output


def test_offline_mode_and_a_path_of_the_same_name(tmp_path: Path) -> None:
    (tmp_path / "org/here").mkdir(parents=True)
    (offline, here), _ = read_in_process(
        ("org/set", {}), ("org/here", {}), cwd=tmp_path, HF_HUB_OFFLINE="1"
    )
    assert offline[3].startswith("org/set: ")
    assert "offline mode is on; unset HF_HUB_OFFLINE" in offline[3]
    assert offline[2] == []
    assert (
        here[3]
        == "org/here is also a local path, which would be read instead of the hub's data set; "
        "give it as a path"
    )


class Breaking:
    """A real stream of `datasets` whose connection is lost after some rows."""

    def __init__(self, stream: Any, after: int) -> None:
        self.stream, self.after = stream, after
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        for number, row in enumerate(self.stream):
            if number == self.after:
                raise ConnectionResetError(f"Connection reset; Bearer {TOKEN}")
            yield row


@pytest.mark.parametrize("kind", ["json", "parquet"])
@pytest.mark.parametrize("skip", [0, 2, 1234])
def test_no_row_is_lost_or_repeated_wherever_it_breaks(
    kind: str, skip: int, tmp_path: Path
) -> None:
    files, noise, breaks = [], random.Random(skip), ["anywhere, not at once"]
    for part in range(3):
        rows = [
            {"text": f"row {row}", "messages": [{"role": "user"}]}
            for row in range(part * 900, part * 900 + 900)
        ]
        files.append(str(tmp_path / f"{part}.{kind}"))
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1], row_group_size=250)
        else:
            Path(files[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def load(*args: Any, **kwargs: Any) -> Breaking:
        return Breaking(
            datasets.load_dataset(*args, **kwargs), noise.randrange(1200) if breaks else 0
        )

    problems: list[str] = []
    dataset = hub.HubDataset(kind, data_files=files)
    retry = hub.RetryPolicy(30, problems.append, lambda seconds: None)
    found = list(hub.read_rows(dataset, skip=skip, load_dataset=load, retry=retry))
    assert [row["text"] for row in found] == [f"row {row}" for row in range(skip, 2700)]
    assert found[0]["messages"] == [{"role": "user"}]
    assert len(problems) > 1
    assert TOKEN not in "".join(problems)
    breaks.clear()
    with pytest.raises(
        ValueError, match=r"gave up after 3 attempts; .* give local files as a path"
    ) as caught:
        list(hub.read_rows(dataset, load_dataset=load, retry=retry._replace(max_retries=2)))
    assert TOKEN not in str(caught.value)


def test_an_error_other_than_the_network_s_is_raised_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    dataset = hub.HubDataset("json", split="test", data_files=str(tmp_path / "a.jsonl"))
    advice = "check config, split and revision at its page on the hub"
    with pytest.raises(ValueError, match=rf"^json: .*test.*; {advice}$"):
        next(hub.read_rows(dataset, retry=hub.RetryPolicy(sleep=pytest.fail)))


class Counting:
    """A real stream that counts the rows it gives."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.given = stream, 0
        self.state_dict, self.load_state_dict = stream.state_dict, stream.load_state_dict

    def __iter__(self) -> Iterator[Any]:
        for row in self.stream:
            self.given += 1
            yield row


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_another_process_resumes_from_a_cursor(kind: str, tmp_path: Path) -> None:
    files = []
    for part in range(3):
        rows = [{"text": f"row {row}"} for row in range(part * 900, part * 900 + 900)]
        files.append(str(tmp_path / f"{part}.{kind}"))
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), files[-1], row_group_size=250)
        else:
            Path(files[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    streams: list[Counting] = []

    def load(*args: Any, **kwargs: Any) -> Counting:
        streams.append(Counting(datasets.load_dataset(*args, **kwargs)))
        return streams[-1]

    cursors: list[hub.StreamCursor] = []
    dataset = hub.HubDataset(kind, data_files=files)
    full = list(hub.read_rows(dataset, on_cursor=cursors.append, load_dataset=load))
    assert [cursor.row for cursor in cursors] == [1000, 2000]

    def resume(skip: int, cursor: hub.StreamCursor) -> list[dict[str, Any]]:
        return list(hub.read_rows(dataset, skip=skip, cursor=cursor, load_dataset=load))

    for cursor in cursors:
        stored = msgspec.json.decode(msgspec.json.encode(cursor), type=hub.StreamCursor)
        for skip in (cursor.row, cursor.row + 321):
            assert resume(skip, stored) == full[skip:]
            assert streams[-1].given == 2700 - cursor.row
            other = msgspec.structs.replace(stored, version="0.1")
            assert resume(skip, other) == full[skip:]
            assert streams[-1].given == 2700, "another version's cursor is not used"
        assert resume(cursor.row - 1, stored) == full[cursor.row - 1 :]


def test_the_newest_revision_is_resolved_to_a_commit(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    program = (
        "from slm_fn.data.io import hub\nprint(hub.resolve_commit('org/set'))\n"
        "for name in ('org/none', 'org/down'):\n"
        "    waits, problems = [], []\n"
        "    retry = hub.RetryPolicy(2, problems.append, waits.append)\n"
        "    try: hub.resolve_commit(name, retry=retry)\n"
        "    except ValueError as error: print(len(waits), len(problems), error)\n"
    )
    home = {
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120,
        env=os.environ | {"HF_TOKEN": TOKEN, **home},
    )  # fmt: skip
    sha, none, down = done.stdout.splitlines()
    assert sha == SHA
    assert none.startswith("0 0 org/none: ")
    assert down.startswith("2 2 org/down: ")
    assert "gave up after 3 attempts" in down


def test_formats_that_unpickle_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(b"")
    dataset = hub.HubDataset("pandas", data_files=str(tmp_path / "a.pkl"))
    with pytest.raises(ValueError, match="pandas: neither OWNER/NAME nor a format"):
        next(hub.read_rows(dataset))
