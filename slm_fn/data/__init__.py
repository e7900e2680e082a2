"""Text and conversations from their sources to batches of token ids.

Order: io, clean, chat, corpus, pack, batches, demo.

A sub-package imports from itself and from those named before it.
"""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
