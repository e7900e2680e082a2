"""pipeline/training/plan.py: what a config switches on, and what it must not change."""

from functools import partial

import msgspec
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slm_fn.core import tree
from slm_fn.core.types import SeededBatch
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.guard import LossScaleState
from slm_fn.optim.recipes import OptimConfig
from slm_fn.optim.transforms import find_state
from slm_fn.pipeline.training.distributed import DistributedContext
from slm_fn.pipeline.training.plan import make_plan
from slm_fn.train.config import TrainConfig
from slm_fn.train.memory import MicroBatches

CPU = torch.device("cpu")


def test_parts_change_no_number(config, rough, batch, gap):
    plan = make_plan(config, next_token, OptimConfig(), TrainConfig(precision="float32"))
    state, rows = plan.init_state(rough(config)), batch(config, rows=4)
    whole, told = plan.make_step(MicroBatches(1))(state, rows)
    parts, told_too = plan.make_step(MicroBatches(4))(state, rows)
    assert gap(parts.params, whole.params) <= 1e-5
    assert gap(told_too, told) <= 1e-5


def test_the_step_is_the_config_s(config, batch):
    plan = make_plan(config, next_token, OptimConfig(ema_decay=0.9), TrainConfig(accumulate=2))
    state = plan.init_state(gpt.init(config, key=0))
    after, told = plan.step(state, batch(config, rows=4))
    assert after.step == 1
    assert set(told) == {"loss", "grad_norm", "weight"}
    assert tree.named_leaves(after).keys() == tree.named_leaves(state).keys()


@pytest.mark.parametrize("num_micro", [2, 4])
def test_a_row_s_dropout_is_its_own_in_any_part(config, rough, batch, gap, num_micro):
    shape = msgspec.structs.replace(config, dropout=0.3)
    plan = make_plan(
        shape, next_token, OptimConfig(), TrainConfig(precision="float32", batch_size=4)
    )
    rows = plan.batches(lambda position: batch(shape, rows=4, key=position))
    state = plan.init_state(rough(shape))
    whole, parts = (
        plan.make_step(MicroBatches(1))(state, rows(7)),
        plan.make_step(MicroBatches(num_micro))(state, rows(7)),
    )
    assert gap(parts[0].params, whole[0].params) <= 1e-5
    assert (
        gap(
            plan.make_step(MicroBatches(1))(state, SeededBatch(rows(7).batch, rows(8).seeds))[
                0
            ].params,
            whole[0].params,
        )
        > 1e-4
    )


def test_ranks_drop_what_one_process_drops(config, batch):
    shape = msgspec.structs.replace(config, dropout=0.3)
    seeded = [
        make_plan(
            shape,
            next_token,
            OptimConfig(),
            TrainConfig(batch_size=5),
            DistributedContext(CPU, rank, 2),
        ).batches(lambda at: at)(3)
        for rank in (0, 1)
    ]
    alone = make_plan(shape, next_token, OptimConfig(), TrainConfig(batch_size=5)).batches(
        lambda at: at
    )(3)
    assert torch.equal(torch.cat([row.seeds for row in seeded]), alone.seeds)


def test_without_dropout_batches_stay_as_they_are(config):
    assert (
        make_plan(config, next_token, OptimConfig(), TrainConfig()).batches(lambda at: at)(3) == 3
    )


def test_remat_changes_no_number(config, rough, batch, gap):
    found = {}
    for name, settings in {
        "kept": TrainConfig(precision="float32"),
        "remat": TrainConfig(precision="float32", remat=True),
    }.items():
        plan = make_plan(config, next_token, OptimConfig(), settings)
        found[name] = plan.step(plan.init_state(rough(config)), batch(config, rows=4))
    assert gap(found["remat"], found["kept"]) == 0


def test_half_precision_brings_its_loss_scale(config, rough, batch):
    plan = make_plan(config, next_token, OptimConfig(), TrainConfig(precision="float16"))
    state = plan.init_state(rough(config))
    assert find_state(state.opt_state, LossScaleState).scale == 2.0**15
    after, told = plan.step(state, batch(config, rows=4))
    assert find_state(after.opt_state, LossScaleState).good == 1
    single = make_plan(config, next_token, OptimConfig(), TrainConfig(precision="float32"))
    _, wanted = single.step(single.init_state(rough(config)), batch(config, rows=4))
    assert abs(told["grad_norm"] / wanted["grad_norm"] - 1) < 0.02  # the scale is undone


def test_a_dual_model_is_balanced_without_being_asked(config, batch):
    shape = msgspec.structs.replace(config, ffn="dual")
    plan = make_plan(shape, next_token, OptimConfig(), TrainConfig())
    _, told = plan.step(plan.init_state(gpt.init(shape, 0)), batch(shape, rows=4))
    assert {"balance", "num_lite", "num_expert", "num_dropped"} < set(told)


def test_the_engine_is_told_with_its_reason(config):
    assert (
        make_plan(config, next_token, OptimConfig(), TrainConfig())
        .messages[0]
        .startswith("engine eager (the run is too short")
    )
    with pytest.raises(ValueError, match="needs a device that replays graphs"):
        make_plan(config, next_token, OptimConfig(), TrainConfig(engine="graph"))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings(
    "ignore:.*autograd.function.Function.* should not be instantiated:DeprecationWarning"
)
def test_a_compiled_step_is_the_step(config, rough, batch, gap, no_shape_checks, monkeypatch):
    monkeypatch.setattr(
        torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True)
    )
    found = {}
    for engine in ("eager", "compile"):
        plan = make_plan(
            config, next_token, OptimConfig(), TrainConfig(precision="float32", engine=engine)
        )
        state = plan.init_state(rough(config))
        for key in range(2):
            state, told = plan.step(state, batch(config, rows=4, key=key))
        found[engine] = state, told
    assert gap(found["compile"], found["eager"]) <= 1e-5
    # One compilation serves every layer, one the loss, one the optimizer.
    assert len(torch._dynamo.utils.compilation_time_metrics["_compile.compile_inner"]) == 3


class _Waits(TorchDispatchMode):
    """Collects what a GPU waits for, or a graph cannot record: reads, uploads, shapes from data."""

    WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.WAITS:
            self.found.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


SHAPES = {
    "llama": {},
    "gpt": {
        "norm": "layer",
        "ffn": "gelu",
        "positions": "learned",
        "biases": "all",
        "dropout": 0.1,
    },
    "alibi-window": {"positions": "alibi", "window": 5, "attn_softcap": 5.0, "logit_softcap": 9.0},
    "yarn-dual-drop": {
        "ffn": "dual",
        "dual": gpt.DualConfig(drop=True),
        "rope_scaling": gpt.RopeScaling(kind="yarn", factor=2.0),
    },
}
OPTIMS = {
    "adamw": OptimConfig(ema_decay=0.9, spike_factor=4.0),
    "muon-onecycle": OptimConfig(name="muon", schedule="onecycle"),
    "lion": OptimConfig(name="lion", schedule="linear"),
    "adafactor": OptimConfig(name="adafactor", schedule="wsd"),
    "sgd": OptimConfig(name="sgd", schedule="constant"),
}


@pytest.mark.parametrize(
    ("shape", "optim"),
    [*((shape, "adamw") for shape in SHAPES), *(("llama", optim) for optim in list(OPTIMS)[1:])],
)
def test_a_step_waits_for_nothing(config, batch, shape, optim):
    shape = msgspec.structs.replace(config, **SHAPES[shape])
    plan = make_plan(
        shape,
        next_token,
        OPTIMS[optim],
        TrainConfig(precision="bfloat16", accumulate=2, batch_size=4),
    )
    state, rows = (
        plan.init_state(gpt.init(shape, 0)),
        plan.batches(lambda at: batch(shape, rows=4))(0),
    )
    with _Waits() as told:
        plan.step(state, rows)
    assert told.found == []
