"""Inference: sampling, the decoding engine, speculative decoding and constraints.

Order: filters, sampling, constraints, request, detokenizer, native_step, decoder, batching, engine,
generate, drafters, speculation.

A file or sub-package imports from itself and from those named before it.
"""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
