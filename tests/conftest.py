"""Shared by all tests: shapes checked at run time, one thread, and the comparison helpers.

The import hook must come before the first import of slm_fn, hence the order of this file.
"""

from jaxtyping import install_import_hook

ROOMS = ("core", "nn", "optim", "loss", "text", "data", "lift", "train", "infer", "evaluate")
install_import_hook([f"slm_fn.{room}" for room in ROOMS], "beartype.beartype")

import inspect
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jaxtyping
import pytest
import torch
from hypothesis import settings
from tiny_project import project, two_packs

from slm_fn.core import random, tree
from slm_fn.core.types import LMBatch
from slm_fn.loss import lm
from slm_fn.nn import gpt

settings.register_profile("quick", max_examples=100, deadline=None)
settings.register_profile(
    "thorough", max_examples=3000, deadline=None
)  # `just test-slow` takes this one
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """One thread: sums depend on the number of threads, and tiny tensors are faster on one."""
    torch.set_num_threads(1)


@pytest.fixture
def no_shape_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shape checks off.

    Torch.compile cannot trace them, nor what is left of them in inner and static functions.
    """
    monkeypatch.setattr(jaxtyping, "jaxtyped", lambda **_: lambda function: function)
    for method in ("forward", "setup_context", "backward"):
        bare = inspect.unwrap(getattr(lm._ChunkedNLL, method))
        monkeypatch.setattr(lm._ChunkedNLL, method, staticmethod(bare))
    jaxtyping.config.update("jaxtyping_disable", True)
    torch._dynamo.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def gap() -> Callable[[Any, Any], float]:
    """`gap(a, b)`.

    The largest relative difference of two trees' leaves, by the Euclidean norm of each leaf.
    """

    def leaf(a: torch.Tensor, b: torch.Tensor) -> float:
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = a.detach().double(), b.detach().double()
        return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()

    def measure(left: Any, right: Any) -> float:
        a, b = tree.named_leaves(left), tree.named_leaves(right)
        assert a.keys() == b.keys()
        return max(leaf(a[path], b[path]) for path in a)

    return measure


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    """`same(a, b)`: two trees agree bit for bit, NaN and the sign of zero included."""

    def bits(x: torch.Tensor) -> bytes:
        return x.detach().contiguous().numpy().tobytes()

    def compare(left: Any, right: Any) -> bool:
        a, b = tree.named_leaves(left), tree.named_leaves(right)
        return a.keys() == b.keys() and all(
            a[path].dtype == b[path].dtype and bits(a[path]) == bits(b[path]) for path in a
        )

    return compare


@pytest.fixture(scope="session")
def purely() -> Callable[..., Any]:
    """`purely(f, *args)`.

    F(*args), having watched that no argument was written to and no global draw was made.
    """

    def call(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = [leaf for leaf in tree.leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        versions, state = [x._version for x in given], torch.get_rng_state()
        result = f(*args, **kwargs)
        assert [x._version for x in given] == versions, "an argument was written to in place"
        assert torch.equal(torch.get_rng_state(), state), "the global generator was drawn from"
        return result

    return call


@pytest.fixture(scope="session")
def config() -> gpt.ModelConfig:
    """A decoder with every feature on that still runs in a millisecond."""
    return gpt.ModelConfig(
        vocab_size=64,
        dim=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_dim=64,
        context=32,
        qk_norm=True,
    )


@pytest.fixture(scope="session")
def rough() -> Callable[..., Any]:
    """`rough(config, key)`.

    Parameters as if trained a while. Fresh ones are the identity in every block: no proof.
    """

    def draw(config: gpt.ModelConfig, key: int = 0) -> Any:
        def shake(path: str, w: torch.Tensor) -> torch.Tensor:
            return w + random.normal(random.fold_in(key + 1000, path), w.shape, 0.1)

        return tree.map_with_path(gpt.init(config, key), shake)

    return draw


@pytest.fixture(scope="session")
def batch() -> Callable[..., LMBatch]:
    """`batch(config, rows, length, key)`.

    Random tokens; every row counts another number of targets.
    """

    def draw(config: gpt.ModelConfig, rows: int = 4, length: int = 12, key: int = 0) -> LMBatch:
        u = random.uniform(random.fold_in(key, "tokens"), (rows, length + 1))
        counted = 1 + torch.arange(rows) * 3 % length
        return LMBatch(
            (u * config.vocab_size).long(), (torch.arange(length) < counted[:, None]).float()
        )

    return draw


@pytest.fixture(scope="session")
def model(config: gpt.ModelConfig) -> Callable[..., Any]:
    """`apply` of the small decoder."""
    return partial(gpt.apply, config)
