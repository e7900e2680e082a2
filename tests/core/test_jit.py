"""Engines for a function: the names are checked, and compiling changes no number."""

import pytest
import torch

from slm_fn.core.jit import jit


def test_eager_is_the_function_itself():
    assert jit("eager")(abs) is abs


def test_compile_is_torch_compile():
    compiled = jit("compile")(lambda x: x + 1)
    assert compiled._torchdynamo_orig_callable(torch.ones(1)) == 2


def test_an_unknown_engine_is_named(no_shape_checks):
    with pytest.raises(ValueError, match="'jax' is not one of eager, compile"):
        jit("jax")
