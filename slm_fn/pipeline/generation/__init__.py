"""Text in, text out, for the command line."""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
