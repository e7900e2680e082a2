"""A small language model from raw text to a chat in the browser, as pure functions.

The library is built from five function types (`slm_fn.core.types`); every feature is a function
from one of them to the same or the next one::

    init       Config x Key        -> Params
    apply      Params x Tokens     -> Logits, Cache
    Loss       Params x Batch      -> Scalar, Aux
    Transform  init: Params -> S      update: Updates x S x Params -> Updates, S
    Step       TrainState x Batch  -> TrainState, Metrics

Map, from the bottom layer to the top:
    core       the types, trees, random keys, gradients, compilation, devices, files
    nn         the decoder; any torch module as (params, apply)
    optim      gradient transformations, schedules, recipes
    loss       next token and preference losses
    text       tokenizers and chat templates
    data       reading, cleaning, packing and batching of text
    lift       quantization, ensembles, sharding, activations, document isolation
    train      the training step and loop, checkpoints, the run log
    infer      sampling, the decoding engine, speculation, constraints
    evaluate   perplexity and preference accuracy
    interop    the formats of transformers and tiktoken
    pipeline   the stages behind the commands of `slm`
    serve      the HTTP server with OpenAI's protocol
    bench      benchmarks

Sub-modules are imported on first use: after `import slm_fn`, `slm_fn.nn.gpt` works.

Invariant: importing this package imports none of its sub-modules.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

__version__ = "0.1.0"


def lazy_submodules(package: str) -> Callable[[str], ModuleType]:
    """Returns a module `__getattr__` (PEP 562) that imports sub-modules of a package on first use.

    Args:
        package: the full name of the package.

    Example:
        >>> lazy_submodules("slm_fn.core")("compose").pipe(abs, str)(-3)
        '3'
    """

    def import_submodule(name: str) -> ModuleType:
        full_name = f"{package}.{name}"
        missing = AttributeError(f"module {package!r} has no attribute {name!r}")
        if name.startswith("_"):
            raise missing
        try:
            return importlib.import_module(full_name)
        except ModuleNotFoundError as error:
            if error.name != full_name:
                raise
            raise missing from None

    return import_submodule


__getattr__ = lazy_submodules(__name__)
