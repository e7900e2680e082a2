"""slm_fn/__init__.py.

The version is the project's, sub-modules load on first use and not before.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import slm_fn

ROOT = Path(__file__).parents[1]


def run_python(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert slm_fn.__version__ == project["version"]


def test_sub_modules_load_on_first_use():
    program = "import slm_fn; print(slm_fn.nn.gpt.ModelConfig.__name__, slm_fn.data.io.__name__)"
    assert run_python(program) == "ModelConfig slm_fn.data.io\n"


def test_the_package_alone_imports_nothing_heavy():
    program = "import sys, slm_fn; print(sorted({'torch', 'numpy', 'click'} & set(sys.modules)))"
    assert run_python(program) == "[]\n"


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"module 'slm_fn\.nn' has no attribute 'banana'"):
        _ = slm_fn.nn.banana
    assert not hasattr(slm_fn, "__wrapped__")
