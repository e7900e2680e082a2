"""A training step composed of functions: model, loss, gradient, accumulation, optimizer."""

from functools import partial

import torch

from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make_optimizer
from slm_fn.train.step import init_state, step_with

TEXT = b"If music be the food of love, play on; give me excess of it, that, surfeiting, "
TEXT += b"the appetite may sicken. "
STEPS, ROWS, LENGTH = 60, 8, 32

config = gpt.ModelConfig(vocab_size=128, dim=64, num_layers=2, ffn_dim=128, context=64)
apply = partial(gpt.apply, config)
optim = OptimConfig(name="muon", learning_rate=1e-2, warmup_steps=5)
tx = make_optimizer(optim, STEPS, gpt.matrix_paths(config).__contains__)
step = pipe(next_token, value_and_grad, accumulate(2), step_with(tx))(apply)

tokens = torch.tensor(list(TEXT * 4))


def batch_at(position: int) -> LMBatch:
    generator = torch.Generator().manual_seed(position)
    starts = torch.randint(len(TEXT), (ROWS,), generator=generator)
    rows = torch.stack([tokens[start : start + LENGTH + 1] for start in starts])
    return LMBatch(rows, torch.ones(ROWS, LENGTH))


state = init_state(gpt.init(config, key=0), tx)
for state, metrics in run(step, state, map(batch_at, range(STEPS))):
    if state.step % 20 == 1 or state.step == STEPS:
        print(f"step {state.step - 1:3d}  loss {metrics['loss']:.3f}")
