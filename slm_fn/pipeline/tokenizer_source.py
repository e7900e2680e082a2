"""Where a tokenizer comes from: a file, a pack, a model, a checkpoint or a run.

Invariant: a template is given only if the tokenizer holds the control tokens of all its roles.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.model_folder import (
    CONFIG,
    GENERATION,
    TOKENIZER,
    GenerationConfig,
    ModelMetadata,
)
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer


class TokenizerSource(NamedTuple):
    """A tokenizer with its chat template (None without roles) and its model's context, if any."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    context: int | None = None


def load_tokenizer(path: Path | str) -> TokenizerSource:
    """The tokenizer of a `tokenizer.json`, or of a pack, model, checkpoint or run folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is not a tokenizer, or the folder is of another kind.
    """
    path = Path(path)
    if not path.is_dir():
        return _with_default_template(Tokenizer.load(path))
    folder = path if (path / TOKENIZER).is_file() else models.locate(path)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    if not (folder / GENERATION).is_file():
        return _with_default_template(tokenizer)
    context = models.read_json(folder / CONFIG, ModelMetadata).model.context
    template = models.read_json(folder / GENERATION, GenerationConfig).template
    return TokenizerSource(tokenizer, template, context)


def _with_default_template(tokenizer: Tokenizer) -> TokenizerSource:
    template = ChatTemplate()
    has_roles = tokenizer.special_tokens.keys() >= set(msgspec.structs.astuple(template))
    return TokenizerSource(tokenizer, template if has_roles else None)
