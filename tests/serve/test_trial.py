"""serve/trial.py: as a process of its own it answers, line by line, without PyTorch, and ends with its input."""

import json
import subprocess
import sys

from slm_fn.infer import constrain
from slm_fn.infer.constrain import Grammar

WIDE = {"type": "object", "properties": {f"k{i}": {"type": "integer"} for i in range(600)}}
FORMS = [Grammar("regex", "a+"), Grammar("json_schema", WIDE), Grammar("json_schema", {"type": "null"})]


def test_it_tells_what_is_too_large_and_ends_with_its_input():
    told = {"tokens": [chr(i) for i in range(256)] + ["<|end|>"], "specials": [256], "stops": [256], "seconds": 30}
    lines = [told, *(constrain.rules(form) for form in FORMS), "nonsense", "\ud800"]
    code = "import sys; from slm_fn.serve import trial; trial.main(sys.stdin, print); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="\n".join(map(json.dumps, lines)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [bool(answer) for answer in answers] == [False, True, False, False, False]
