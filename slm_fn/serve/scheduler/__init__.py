"""The engine's worker thread with its queue, jobs and metrics; the cache of compiled grammars."""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
