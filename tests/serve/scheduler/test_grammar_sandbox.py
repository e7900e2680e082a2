"""serve/scheduler/grammar_sandbox.py: a process that answers line by line, without PyTorch."""

import json
import subprocess
import sys

from slm_fn.infer import constraints
from slm_fn.infer.constraints import Grammar

WIDE_SCHEMA = {
    "type": "object",
    "properties": {f"k{i}": {"type": "integer"} for i in range(600)},
}
GRAMMARS = [
    Grammar("regex", "a+"),
    Grammar("json_schema", WIDE_SCHEMA),
    Grammar("json_schema", {"type": "null"}),
]
PROGRAM = """
import sys
from slm_fn.serve.scheduler import grammar_sandbox
grammar_sandbox.main(sys.stdin, print)
assert "torch" not in sys.modules
"""


def test_it_reports_what_is_too_large_and_ends_with_its_input():
    setup = {
        "tokens": [chr(i) for i in range(256)] + ["<|end|>"],
        "specials": [256],
        "stops": [256],
        "seconds": 30,
    }
    rules = [constraints.to_llguidance(grammar) for grammar in GRAMMARS]
    lines = [setup, *rules, "nonsense", "\ud800"]
    completed = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert completed.returncode == 0, completed.stderr
    errors = [json.loads(line) for line in completed.stdout.splitlines()]
    assert [bool(error) for error in errors] == [False, True, False, False, False]
