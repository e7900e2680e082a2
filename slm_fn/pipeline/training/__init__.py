"""Run folders, processes and the training step that a config describes."""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
