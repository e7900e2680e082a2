"""Corpora of several sources: their config, source rows, cleaned documents and part files."""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
