"""The stages of the product: each reads files and writes a folder.

Order: model_folder, tokenizer_source, progress, replies, training, generation, planning, reports,
stages.

A file or sub-package imports from itself and from those named before it.
"""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
