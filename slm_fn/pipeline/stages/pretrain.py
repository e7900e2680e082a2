"""Stage: packed shards to a pretrained model.

Invariant: the vocabulary is the pack's; a config that names another size is an error, not a resize.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import msgspec

from slm_fn.config import Config
from slm_fn.core import random, tree
from slm_fn.core.compose import pipe
from slm_fn.core.types import Apply, LMBatch, Params
from slm_fn.data.batches import mix, stream
from slm_fn.data.batches.mix import Mixture
from slm_fn.data.pack import dataset as packs
from slm_fn.evaluate.perplexity import batch_likelihood, bits_per_byte
from slm_fn.infer import generate
from slm_fn.lift.documents import isolate_documents
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.nn.gpt import ModelConfig
from slm_fn.pipeline import model_folder
from slm_fn.pipeline.generation.generate import make_request
from slm_fn.pipeline.model_folder import GenerationConfig, Model
from slm_fn.pipeline.training.distributed import DistributedContext, process_group
from slm_fn.pipeline.training.loop import TrainResult, train
from slm_fn.pipeline.training.plan import make_plan
from slm_fn.pipeline.training.stage import RunOptions, Stage
from slm_fn.text.chat_template import ChatTemplate
from slm_fn.text.tokenizer import Tokenizer

SAMPLE_TOKENS = 48


def pretrain(
    config: Config,
    data: Path | str | Sequence[Path | str],
    out: Path | str,
    options: RunOptions = RunOptions(),
    weights: Sequence[int | float] | None = None,
) -> TrainResult:
    """Trains a decoder from random weights on one pack or several; resumes an earlier run.

    Args:
        config: its model, pretrain and sampling sections are read.
        data: pack folders.
        out: the run folder.
        options: device, resuming, and how to display progress.
        weights: each pack's share of the rows, in any unit; by default its tokens, as if the packs
            were one.

    Raises:
        ValueError: a pack is broken, has another tokenizer than the others, another vocabulary than
            the config, or windows longer than its context.
        Interrupted: stopped by Ctrl+C or SIGTERM; everything is saved.
    """
    pack_paths = [data] if isinstance(data, str | Path) else data
    with process_group(options.device) as dist:
        mixture, tokenizer = _open_packs(pack_paths, weights)
        stage = _make_stage(config, mixture, tokenizer, dist)
        return train(stage, config, out, options)


def _open_packs(
    paths: Sequence[Path | str], weights: Sequence[int | float] | None
) -> tuple[Mixture, Tokenizer]:
    opened = [packs.open_pack(path) for path in paths]
    mixture = mix.mix(opened, weights)
    tokenizer = Tokenizer.load(opened[0].path / model_folder.TOKENIZER)
    for pack in opened:
        packs.check_tokenizer(pack, tokenizer.fingerprint)
    return mixture, tokenizer


def _make_stage(
    config: Config, mixture: Mixture, tokenizer: Tokenizer, dist: DistributedContext
) -> Stage:
    settings = config.pretrain.train
    first_pack = mixture.packs[0]
    model = _model_of_pack(config.model, first_pack)
    generation = GenerationConfig(sampling=config.sampling)
    plan = make_plan(
        model,
        partial(next_token, smoothing=config.pretrain.label_smoothing),
        config.pretrain.optim,
        settings,
        dist,
        isolate_documents(first_pack.info.eos) if config.pretrain.isolate_documents else pipe(),
    )

    def init_params() -> Params:
        params = gpt.init(model, random.fold_in(settings.seed, "init"))
        return cast(Params, tree.to_device(params, dist.device))

    def batch_at(position: int) -> LMBatch:
        return mix.lm_batch(
            mixture,
            "train",
            settings.seed,
            position,
            settings.batch_size,
            dist.rank,
            dist.world_size,
        )

    return Stage(
        name="pretrain",
        plan=plan,
        init_params=init_params,
        batch_at=batch_at,
        evaluate=_make_evaluator(plan.apply, mixture, config, dist),
        sample=_make_sampler(model, tokenizer, generation),
        model_files=model_folder.metadata_files(model, tokenizer, generation),
        data_hash=mixture.digest,
        flops_per_token=gpt.train_flops_per_token(model, first_pack.info.seq_len),
    )


def _model_of_pack(model: ModelConfig, pack: packs.Pack) -> ModelConfig:
    """The model's config with the vocabulary of the pack.

    Raises:
        ValueError: the config names another vocabulary, or the pack's windows are longer than the
            context.
    """
    info = pack.info
    if model.vocab_size not in (0, info.vocab_size):
        raise ValueError(
            f"model.vocab_size is {model.vocab_size}, but the pack {pack.path} was made with "
            f"{info.vocab_size} tokens; leave it out of the config, or pack with another tokenizer"
        )
    if info.seq_len > model.context:
        raise ValueError(
            f"the pack {pack.path} has windows of {info.seq_len} tokens, but model.context is "
            f"{model.context}; pack again with --seq-len {model.context}"
        )
    return gpt.check(msgspec.structs.replace(model, vocab_size=info.vocab_size))


def _make_evaluator(
    apply: Apply, mixture: Mixture, config: Config, dist: DistributedContext
) -> Callable[[Params], dict[str, float]]:
    """Loss and bits per byte on fixed held-out windows, mixed as the training data.

    Nothing if no pack has any.
    """
    settings = config.pretrain.train
    held_out = _held_out_mixture(mixture)
    if held_out is None:
        return lambda params: {}
    num_windows = sum(stream.num_windows(pack, "val") for pack in held_out.packs)
    num_rows = min(settings.batch_size, num_windows)
    num_batches = max(1, min(settings.eval_batches, num_windows // num_rows))
    bytes_per_token = _bytes_per_token(held_out)

    def evaluate(params: Params) -> dict[str, float]:
        own_positions = range(dist.rank, num_batches, dist.world_size)
        batches = (
            tree.to_device(mix.lm_batch(held_out, "val", 0, position, num_rows), dist.device)
            for position in own_positions
        )
        nats, tokens = dist.sum(*batch_likelihood(apply, params, batches))
        loss = nats / tokens
        return {"val_loss": loss, "val_bits_per_byte": bits_per_byte(loss, bytes_per_token)}

    return evaluate


def _held_out_mixture(mixture: Mixture) -> Mixture | None:
    """The packs that hold at least one validation window, in their shares."""
    packs_and_shares = [
        (pack, share)
        for pack, share in zip(mixture.packs, mixture.shares, strict=True)
        if stream.num_windows(pack, "val")
    ]
    if not packs_and_shares:
        return None
    held_out_packs, shares = zip(*packs_and_shares, strict=True)
    return mix.mix(held_out_packs, shares)


def _bytes_per_token(held_out: Mixture) -> float:
    total = 0.0
    for pack, share in zip(held_out.packs, held_out.shares, strict=True):
        split = pack.info.splits["val"]
        total += share * split.num_bytes / split.tokens
    return total


def _make_sampler(
    config: ModelConfig, tokenizer: Tokenizer, generation: GenerationConfig
) -> Callable[[Params], list[dict[str, str]]]:
    """Returns a function of parameters to a text from an empty prompt, with a fixed seed."""
    start_id = tokenizer.special_id(ChatTemplate().bos)

    def sample(params: Params) -> list[dict[str, str]]:
        model = Model(config, params, tokenizer, generation)
        request = make_request(model, [start_id], generation.sampling, 0, SAMPLE_TOKENS)
        ids = generate.generate(model.decoder, request, config.context)
        return [{"prompt": "", "text": tokenizer.decode(list(ids))}]

    return sample
