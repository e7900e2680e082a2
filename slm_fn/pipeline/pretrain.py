"""Stage: packed shards to a pretrained model.

Invariant: the vocabulary is the pack's; a config that says another is an error, not a resize.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from slm_fn.config import Config
from slm_fn.core import device as devices
from slm_fn.core import random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.core.types import Apply, Params
from slm_fn.data import pack as packs
from slm_fn.data import stream
from slm_fn.evaluate.perplexity import batch_likelihood, bits_per_byte
from slm_fn.infer import decode
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.optim import recipes
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Generation, Model
from slm_fn.pipeline.run import Outcome, Stage, train
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer
from slm_fn.train.step import init_state, step_with


def pretrain(
    config: Config,
    data: Path | str,
    out: Path | str,
    device: str = "auto",
    resume: str = "auto",
    live: bool | None = None,
) -> Outcome:
    """Train a decoder on a pack from random weights; goes on where a killed run stopped.

    Raises:
        ValueError: the pack is broken, has another vocabulary than the config, or windows longer than its context.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    pack = packs.open_pack(data)
    tokenizer = Tokenizer.load(Path(data) / models.TOKENIZER)
    packs.check_tokenizer(pack, tokenizer.fingerprint)
    shape, settings = _shape(config.model, pack), config.pretrain.train
    place = devices.resolve(device)
    apply = devices.compute_in(devices.dtype_of(settings.precision, place))(partial(gpt.apply, shape))
    tx = recipes.make(
        config.pretrain.optim,
        settings.total_steps,
        gpt.matrices(shape).__contains__,
        devices.dtype_of(settings.precision, place),
    )
    step = pipe(next_token, value_and_grad, accumulate(settings.accumulate), step_with(tx))(apply)
    params = tree.to_device(gpt.init(shape, random.fold_in(settings.seed, "init")), place)
    generation = Generation(sampling=config.sampling)
    stage = Stage(
        name="pretrain",
        state=init_state(params, tx),
        step=step,
        batch_at=lambda position: stream.lm_batch(pack, "train", settings.seed, position, settings.batch_size),
        evaluate=_evaluator(apply, pack, config, place),
        sample=_sampler(shape, tokenizer, generation),
        model_files=models.describe(shape, tokenizer, generation),
        data_hash=pack.digest,
    )
    return train(stage, config, settings, out, resume, live)


def _shape(model: ModelConfig, pack: packs.Pack) -> ModelConfig:
    info = pack.info
    if model.vocab_size not in (0, info.vocab_size):
        raise ValueError(
            f"model.vocab_size is {model.vocab_size}, but the pack {pack.path} was made with {info.vocab_size} tokens; "
            "leave it out of the config, or pack with another tokenizer"
        )
    if info.seq_len > model.context:
        raise ValueError(
            f"the pack {pack.path} has windows of {info.seq_len} tokens, but model.context is {model.context}; "
            f"pack again with --seq-len {model.context}"
        )
    return gpt.check(msgspec.structs.replace(model, vocab_size=info.vocab_size))


def _evaluator(apply: Apply, pack: packs.Pack, config: Config, device: Any) -> Callable[[Params], dict[str, float]]:
    """Loss and bits per byte on fixed held-out windows; nothing when the pack holds none."""
    settings = config.pretrain.train
    held_out = pack.info.splits["val"]
    total = stream.num_windows(pack, "val")
    if not total:
        return lambda params: {}
    rows = min(settings.batch_size, total)
    batches = max(1, min(settings.eval_batches, total // rows))

    def evaluate(params: Params) -> dict[str, float]:
        fixed = (tree.to_device(stream.lm_batch(pack, "val", 0, i, rows), device) for i in range(batches))
        loss = batch_likelihood(apply, params, fixed).loss_nats
        per_byte = bits_per_byte(loss * held_out.tokens, held_out.num_bytes)
        return {"val_loss": loss, "val_bits_per_byte": per_byte}

    return evaluate


def _sampler(
    shape: ModelConfig, tokenizer: Tokenizer, generation: Generation
) -> Callable[[Params], list[dict[str, str]]]:
    """A text from nothing, with a fixed seed: the same model writes the same words."""
    template = ChatTemplate()

    def sample(params: Params) -> list[dict[str, str]]:
        model = Model(shape, params, tokenizer, generation)
        ids = decode.generate(
            model.apply,
            model.init_cache,
            params,
            [tokenizer.special(template.bos)],
            config=generation.sampling,
            seed=0,
            max_tokens=48,
            stop_ids=model.stop_ids,
            size=shape.context,
        )
        return [{"prompt": "", "text": tokenizer.decode(list(ids))}]

    return sample
