"""Stage: packed shards to a pretrained model.

Invariant: the vocabulary is the pack's; a config that says another is an error, not a resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from slm_fn.config import Config
from slm_fn.core import random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.types import Apply, Params
from slm_fn.data import mix, stream
from slm_fn.data import pack as packs
from slm_fn.data.mix import Mixture
from slm_fn.evaluate.perplexity import batch_likelihood, bits_per_byte
from slm_fn.infer import decode
from slm_fn.lift.documents import isolate
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model as models
from slm_fn.pipeline.model import Generation, Model
from slm_fn.pipeline.ranks import Ranks, joined
from slm_fn.pipeline.run import Outcome, Stage, train
from slm_fn.pipeline.step import plan
from slm_fn.text.chat import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer


def pretrain(
    config: Config,
    data: Path | str | Sequence[Path | str],
    out: Path | str,
    device: str = "auto",
    resume: str = "auto",
    live: bool | None = None,
    weights: Sequence[int | float] | None = None,
) -> Outcome:
    """Train a decoder on one pack or several from random weights; goes on where a killed run stopped.

    Args:
        weights: each pack's share of the rows, in any unit; by default its tokens, as if the packs were one.

    Raises:
        ValueError: a pack is broken, has another tokenizer than the others, another vocabulary than the config, or
            windows longer than its context.
        Interrupted: Ctrl+C or SIGTERM came; everything is saved.
    """
    with joined(device) as here:
        mixture, tokenizer = _open([data] if isinstance(data, str | Path) else data, weights)
        stage = _stage(config, mixture, tokenizer, here)
        return train(stage, config, config.pretrain.train, out, resume, live)


def _stage(config: Config, mixture: Mixture, tokenizer: Tokenizer, here: Ranks) -> Stage:
    shape, settings = _shape(config.model, mixture.packs[0]), config.pretrain.train
    lift = isolate(mixture.packs[0].info.eos) if config.pretrain.isolate_documents else pipe()
    objective = partial(next_token, smoothing=config.pretrain.label_smoothing)
    how = plan(shape, objective, config.pretrain.optim, settings, here, lift)
    generation = Generation(sampling=config.sampling)
    seed, rows = settings.seed, settings.batch_size
    return Stage(
        name="pretrain",
        begin=lambda: how.begin(tree.to_device(gpt.init(shape, random.fold_in(seed, "init")), here.device)),
        step=how.step,
        batch_at=how.batches(lambda at: mix.lm_batch(mixture, "train", seed, at, rows, here.rank, here.size)),
        evaluate=_evaluator(how.apply, mixture, config, here),
        sample=_sampler(shape, tokenizer, generation),
        model_files=models.describe(shape, tokenizer, generation),
        data_hash=mixture.digest,
        here=here,
        told=how.told,
        observe=how.observe,
        hooks=how.hooks,
        flops_per_token=gpt.flops(shape, mixture.packs[0].info.seq_len),
    )


def _open(data: Sequence[Path | str], weights: Sequence[int | float] | None) -> tuple[Mixture, Tokenizer]:
    opened = [packs.open_pack(path) for path in data]
    mixture = mix.mix(opened, weights)
    tokenizer = Tokenizer.load(opened[0].path / models.TOKENIZER)
    for pack in opened:
        packs.check_tokenizer(pack, tokenizer.fingerprint)
    return mixture, tokenizer


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


def _evaluator(apply: Apply, mixture: Mixture, config: Config, here: Ranks) -> Callable[[Params], dict[str, float]]:
    """Loss and bits per byte on fixed held-out windows, mixed as those to train on; nothing when no pack holds any."""
    settings = config.pretrain.train
    judged = [(p, s) for p, s in zip(mixture.packs, mixture.shares, strict=True) if stream.num_windows(p, "val")]
    if not judged:
        return lambda params: {}
    held_out = mix.mix(*zip(*judged, strict=True))
    total = sum(stream.num_windows(pack, "val") for pack in held_out.packs)
    rows = min(settings.batch_size, total)
    batches = max(1, min(settings.eval_batches, total // rows))
    splits = [pack.info.splits["val"] for pack in held_out.packs]
    bytes_per_token = sum(n * s.num_bytes / s.tokens for n, s in zip(held_out.shares, splits, strict=True))

    def evaluate(params: Params) -> dict[str, float]:
        mine = range(here.rank, batches, here.size)
        fixed = (tree.to_device(mix.lm_batch(held_out, "val", 0, i, rows), here.device) for i in mine)
        nats, tokens = here.sum(*batch_likelihood(apply, params, fixed))
        loss = nats / tokens
        return {"val_loss": loss, "val_bits_per_byte": bits_per_byte(loss, bytes_per_token)}

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
