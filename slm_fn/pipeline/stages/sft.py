"""Stage: conversations to a model that answers; the loss counts the assistant's tokens.

Invariant: conversations are encoded by the template the model is served with, id for id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from slm_fn.config import Config
from slm_fn.core import tree
from slm_fn.core.compose import pipe
from slm_fn.core.types import Apply, Params
from slm_fn.data.batches import chat_batches, chat_packing
from slm_fn.data.batches.chat_batches import ChatExample
from slm_fn.data.chat import records
from slm_fn.data.chat.records import Conversation
from slm_fn.evaluate.perplexity import batch_likelihood
from slm_fn.lift.documents import isolate_documents
from slm_fn.loss.lm import next_token
from slm_fn.pipeline import model_folder
from slm_fn.pipeline.model_folder import Model
from slm_fn.pipeline.training import finetune
from slm_fn.pipeline.training.distributed import (
    SINGLE_PROCESS,
    DistributedContext,
    process_group,
)
from slm_fn.pipeline.training.loop import TrainResult, train
from slm_fn.pipeline.training.plan import make_plan
from slm_fn.pipeline.training.stage import RunOptions
from slm_fn.text import chat_template
from slm_fn.train.config import TrainConfig


def sft(
    config: Config,
    init: Path | str,
    data: Sequence[Path],
    out: Path | str,
    val: Sequence[Path] = (),
    options: RunOptions = RunOptions(),
    note: Callable[[str], None] = print,
) -> TrainResult:
    """Fine-tunes a model on chat JSONL.

    Args:
        config: its sft section is read.
        init: the model, run or checkpoint folder to start from.
        data: files or folders of conversations to train on.
        out: the run folder.
        val: files or folders to validate on; if empty, `val_fraction` of the prompts are held out.
        options: device, resuming, and how to display progress.
        note: receives lines about the data.

    Raises:
        ValueError: a bad line (names it), or more than 5 % of the conversations have nothing to
            learn in the context.
        Interrupted: stopped by Ctrl+C or SIGTERM; everything is saved.
    """
    settings = config.sft.train
    with process_group(options.device) as dist:
        model = model_folder.load_for_training(init, dist.device)
        note = dist.on_first(note)
        read_chat = partial(records.read_chat, check=chat_template.check_messages)
        train_rows, val_rows = finetune.load_rows(
            read_chat, data, val, config.sft.val_fraction, lambda row: row.messages
        )
        examples = encode_conversations(model, train_rows, note)
        note(_describe_examples(examples, settings))
        lift: Callable[[Apply], Apply] = pipe()
        if config.sft.pack_rows:
            examples = chat_packing.pack(examples, finetune.max_ids(model), settings.seed)
            lift = isolate_documents(model.tokenizer.special_id(model.generation.template.bos))
            note(f"packed: {_describe_examples(examples, settings)}")
        val_examples = encode_conversations(model, val_rows, note) if val_rows else []
        plan = make_plan(model.config, next_token, config.sft.optim, settings, dist, lift)
        pad = model.tokenizer.special_id(finetune.PAD)
        stage = finetune.make_stage(
            "sft",
            model,
            plan,
            partial(chat_batches.batch, partial(chat_batches.collate, pad=pad), examples),
            make_evaluator(model, plan.apply, val_examples, settings.batch_size, dist),
            finetune.hash_inputs(model_folder.locate(init), [*data, *val]),
        )
        return train(stage, config, out, options)


def encode_conversations(
    model: Model, conversations: Sequence[Conversation], note: Callable[[str], None]
) -> list[ChatExample]:
    """Returns conversations as ids and masks that fit the context; reports how many were dropped.

    Args:
        model: whose template, tokenizer and context to use.
        conversations: rows of `records.read_chat`.
        note: receives a line if any were dropped.

    Raises:
        ValueError: none are left, or more than 5 % had nothing to learn.
    """
    template, tokenizer = model.generation.template, model.tokenizer
    limit = finetune.max_ids(model)
    kept: list[ChatExample] = []
    dropped: Counter[str] = Counter()
    for chunk in finetune.chunks(conversations, finetune.RENDER_CHUNK):
        messages = [row.messages for row in chunk]
        rendered = chat_template.render_batch(template, tokenizer, messages)
        fitting, dropped_here = chat_batches.fit([ChatExample(*row) for row in rendered], limit)
        kept += map(chat_batches.compact, fitting)
        dropped.update(dropped_here)
    return finetune.check_dropped(kept, dropped, len(conversations), note)


def make_evaluator(
    model: Model,
    apply: Apply,
    examples: Sequence[ChatExample],
    num_rows: int,
    dist: DistributedContext = SINGLE_PROCESS,
) -> Callable[[Params], dict[str, float]]:
    """Returns a function of parameters to the loss on held-out conversations.

    Without examples it returns no metrics.

    Args:
        model: whose tokenizer pads the batches.
        apply: the model as the training step computes it.
        examples: held-out conversations.
        num_rows: rows per batch.
        dist: the processes that share the batches.
    """
    if not examples:
        return lambda params: {}
    pad = model.tokenizer.special_id(finetune.PAD)
    own_starts = range(dist.rank * num_rows, len(examples), dist.world_size * num_rows)

    def evaluate(params: Params) -> dict[str, float]:
        device = params["norm"].device
        chunks = (examples[start : start + num_rows] for start in own_starts)
        batches = (tree.to_device(chat_batches.collate(chunk, pad), device) for chunk in chunks)
        nats, tokens = dist.sum(*batch_likelihood(apply, params, batches))
        return {"val_loss": nats / max(1, tokens)}

    return evaluate


def _describe_examples(examples: Sequence[ChatExample], settings: TrainConfig) -> str:
    report = chat_batches.measure(examples, settings.batch_size, settings.seed)
    return chat_batches.summarize(report)
