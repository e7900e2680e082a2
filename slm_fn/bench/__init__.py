"""Benchmarks: training, decoding, tokenizers and the server.

Order: rounds, tokenizer, train, decode, serve.

A file or sub-package imports from itself and from those named before it.
"""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
