"""Draft models by name (`ngram`, or the folder of a smaller model), and text generated with them.

Invariant: a draft model changes how fast a text is generated, never the distribution of texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from slm_fn.infer import detokenizer, drafters, speculation
from slm_fn.infer.detokenizer import TextDelta
from slm_fn.infer.drafters import Drafter
from slm_fn.infer.request import Request
from slm_fn.infer.speculation import OnPass, ignore_stats
from slm_fn.pipeline import model_folder as models
from slm_fn.pipeline.model_folder import Model

NGRAM = "ngram"


def load_drafter(
    model: Model,
    name: str,
    device: torch.device | str = "cpu",
    raw: bool = False,
    decode: str = "auto",
) -> Drafter:
    """The source of draft tokens for a model.

    Args:
        name: `ngram`, or a model, run or checkpoint folder whose tokenizer is the model's.
        raw: load the draft model's weights as trained, not their running average.
        decode: the decoding engine of the draft model, as in `model_folder.load`.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the draft model has another tokenizer.
    """
    if name == NGRAM:
        return drafters.ngram_drafter()
    draft = models.load(name, device, raw, decode=decode)
    if draft.tokenizer.fingerprint != model.tokenizer.fingerprint:
        raise ValueError(f"{name}: has another tokenizer; a draft model needs the same one")
    return drafters.model_drafter(draft.decoder, draft.config.context)


def stream_text(
    model: Model,
    drafter: Drafter,
    request: Request,
    stops: Sequence[str] = (),
    on_pass: OnPass = ignore_stats,
) -> Iterator[TextDelta]:
    """`generate.stream_text` with speculative decoding.

    Args:
        model: the model.
        drafter: the source of draft tokens.
        request: what to generate, without a constraint.
        stops: strings that end the text; they are not part of it.
        on_pass: called after every forward pass with the counts of drafted and accepted tokens.

    Raises:
        ValueError: before the first delta: the prompt does not fit the context, or a setting is out
            of range.
    """
    context = model.config.context
    tokens = speculation.generate(model.decoder, drafter, request, context, on_pass)
    return detokenizer.stream_deltas(tokens, model.tokenizer.token_bytes, request.stop_ids, stops)
