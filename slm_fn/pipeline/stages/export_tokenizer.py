"""Stage: a tokenizer as the files of another program, read back and compared.

Invariant: the files in the output folder give the same ids as the tokenizer; a tokenizer whose ids
another program would change is refused, and nothing is written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from slm_fn.core import files
from slm_fn.interop import hf, tiktoken
from slm_fn.pipeline.tokenizer_source import load_tokenizer

Target = Literal["tiktoken", "hf"]

USAGE = {
    "tiktoken": """\
import json, tiktoken
from tiktoken.load import load_tiktoken_bpe
with open("{out}/encoding.json", encoding="utf-8") as file:
    settings = json.load(file)
ranks = load_tiktoken_bpe("{out}/tokenizer.tiktoken")
encoding = tiktoken.Encoding(**settings, mergeable_ranks=ranks)
encoding.encode_ordinary("text")  # text never becomes a special token""",
    "hf": """\
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("{out}")
messages = [{{"role": "user", "content": "Hello"}}]
tokenizer.apply_chat_template(messages, add_generation_prompt=True)""",
}


class Exported(NamedTuple):
    """The folder of an export, the files in it, and the Python that loads it."""

    out: Path
    files: tuple[str, ...]
    how: str


def export_tokenizer(source: Path | str, to: Target, out: Path | str) -> Exported:
    """Write a tokenizer as a folder for another program.

    Raises:
        ValueError: the other program would give other ids, or the output folder holds other files.
        FileNotFoundError: there is no tokenizer at the source.
    """
    tokenizer, template, context = load_tokenizer(source)
    out = Path(out)
    if to == "tiktoken":
        contents = tiktoken.export_files(tokenizer)
    else:
        contents = hf.export_files(tokenizer, template, context)
    files.check_replaceable(out, set(contents), "an export")
    with files.replace_folder(out) as folder:
        for name, text in contents.items():
            (folder / name).write_text(text, encoding="utf-8", newline="")
        if to == "tiktoken":
            tiktoken.load_encoding(folder, tokenizer)
        else:
            hf.check_export(folder, tokenizer, template)
    return Exported(out, tuple(contents), USAGE[to].format(out=out.as_posix()))
