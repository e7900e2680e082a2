"""A training step composed from the arrows: model, loss, gradient, accumulation, optimizer."""

from functools import partial

import torch

from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import accumulate, value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make
from slm_fn.train.step import init_state, step_with

TEXT = b"If music be the food of love, play on; give me excess of it, that, surfeiting, the appetite may sicken. "
STEPS, ROWS, LENGTH = 60, 8, 32

config = gpt.ModelConfig(vocab_size=128, dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=128, context=64)
model = partial(gpt.apply, config)
tx = make(OptimConfig(name="muon", learning_rate=1e-2, warmup_steps=5), STEPS, gpt.matrices(config).__contains__)

step = pipe(next_token, value_and_grad, accumulate(2), step_with(tx))(model)

text = torch.tensor(list(TEXT * 4))


def batch(position: int) -> LMBatch:
    starts = torch.randint(len(TEXT), (ROWS,), generator=torch.Generator().manual_seed(position))
    return LMBatch(torch.stack([text[s : s + LENGTH + 1] for s in starts]), torch.ones(ROWS, LENGTH))


state = init_state(gpt.init(config, key=0), tx)
for i, (state, metrics) in enumerate(run(step, state, map(batch, range(STEPS)))):
    if i % 20 == 0 or i == STEPS - 1:
        print(f"step {i:3d}  loss {metrics['loss']:.3f}  gradient norm {metrics['grad_norm']:.3f}")
