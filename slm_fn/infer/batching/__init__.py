"""Parts of continuous batching: the engine's state, prefill, the prefix cache and batch sizes."""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
