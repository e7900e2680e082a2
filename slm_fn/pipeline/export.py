"""Stage: a tokenizer to the files of other programs, read back and compared before they take their place.

Invariant: what is left in the output folder has given our ids; what would not is refused, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from slm_fn.core import files
from slm_fn.interop import hf, tiktoken
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import CONFIG, GENERATION, TOKENIZER, Description, Generation
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer

Target = Literal["tiktoken", "hf"]
HOW = {
    "tiktoken": """\
import json, tiktoken
from tiktoken.load import load_tiktoken_bpe
with open("{out}/encoding.json", encoding="utf-8") as file:
    told = json.load(file)
encoding = tiktoken.Encoding(**told, mergeable_ranks=load_tiktoken_bpe("{out}/tokenizer.tiktoken"))
encoding.encode_ordinary("text")  # text never becomes a control token""",
    "hf": """\
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{out}")
tokenizer.apply_chat_template([{{"role": "user", "content": "Hello"}}], add_generation_prompt=True)""",
}


class Found(NamedTuple):
    """A tokenizer and what its folder says of it: the chat template, None without roles, and the model's context."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    context: int | None = None


class Exported(NamedTuple):
    """Where an export lies, the files in it, and the Python that loads it."""

    out: Path
    files: tuple[str, ...]
    how: str


def find(path: Path | str) -> Found:
    """The tokenizer of a `tokenizer.json`, a pack, a model, a checkpoint or a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file that is no tokenizer, or a folder of another kind.
    """
    path = Path(path)
    if not path.is_dir():
        tokenizer = Tokenizer.load(path)
    else:
        place = path if (path / TOKENIZER).is_file() else models.locate(path)
        tokenizer = Tokenizer.load(place / TOKENIZER)
        if (place / GENERATION).is_file():
            context = models.read(place / CONFIG, Description).model.context
            return Found(tokenizer, models.read(place / GENERATION, Generation).template, context)
    template = ChatTemplate()
    has_roles = tokenizer.specials.keys() >= set(msgspec.structs.astuple(template))
    return Found(tokenizer, template if has_roles else None)


def export_tokenizer(source: Path | str, to: Target, out: Path | str) -> Exported:
    """Write a tokenizer as a folder for another program.

    Raises:
        ValueError: that program would give other ids, or the output folder holds other files.
        FileNotFoundError: there is no tokenizer at the source.
    """
    found, out = find(source), Path(out)
    if to == "tiktoken":
        contents = tiktoken.files(found.tokenizer)
    else:
        contents = hf.files(found.tokenizer, found.template, found.context)
    _check_place(out, contents.keys())
    with files.folder(out) as place:
        for name, text in contents.items():
            (place / name).write_text(text, encoding="utf-8", newline="")
        if to == "tiktoken":
            tiktoken.load(place, found.tokenizer)
        else:
            hf.check(place, found.tokenizer, found.template)
    return Exported(out, tuple(contents), HOW[to].format(out=out.as_posix()))


def _check_place(out: Path, names: Collection[str]) -> None:
    """A folder is replaced as a whole, so it may hold nothing but an older export."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; an export is a folder")
    others = sorted({file.name for file in out.iterdir()} - set(names)) if out.exists() else []
    if others:
        raise ValueError(f"{out} holds other files ({', '.join(others[:3])}); name a new folder for the export")
