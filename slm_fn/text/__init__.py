"""Tokenizers, chat templates and text normalization.

Order: utf8, normalize, patterns, byte_vocab, encoder, tokenizer, messages, chat_template, training.

A file or sub-package imports from itself and from those named before it.
"""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
