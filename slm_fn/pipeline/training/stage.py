"""What a training stage is: a training plan, its data, and how the model is evaluated and sampled.

Invariant: batches are a function of their position alone, so a resumed run reads the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from slm_fn.core.types import Params
from slm_fn.pipeline.training.plan import TrainingPlan


class RunOptions(NamedTuple):
    """How a stage runs, beside its config.

    Attributes:
        device: `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.
        resume: `auto` (from the newest complete checkpoint if there is one), `never` (the folder
            must hold no run), or the path of a checkpoint.
        live: whether to draw a progress bar; by default on a terminal only.
    """

    device: str = "auto"
    resume: str = "auto"
    live: bool | None = None


class Stage(NamedTuple):
    """One training stage: pretrain, sft or dpo.

    Attributes:
        name: names the run and the config's section.
        plan: how to train.
        init_params: returns the parameters to start from.
        batch_at: returns this process's rows of the batch at a position, without dropout seeds.
        evaluate: returns validation metrics of parameters; none without validation data.
        sample: returns sample texts of parameters, as rows of samples.jsonl.
        model_files: config.json, tokenizer.json, generation.json.
        data_hash: what the run is trained on; a resumed run must have the same.
        flops_per_token: of training, for metrics.jsonl; 0 leaves it out.
    """

    name: str
    plan: TrainingPlan
    init_params: Callable[[], Params]
    batch_at: Callable[[int], Any]
    evaluate: Callable[[Params], dict[str, float]]
    sample: Callable[[Params], list[dict[str, str]]]
    model_files: Mapping[str, bytes]
    data_hash: str
    flops_per_token: int = 0
