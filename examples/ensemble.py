"""An ensemble of training runs under vmap: one step, five members, one pass."""

from functools import partial

import torch

from slm_fn.core import random
from slm_fn.core.compose import pipe
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.lift.ensemble import ensemble, gather, member
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make
from slm_fn.train.step import init_state, step_with

MEMBERS, STEPS = 5, 40

config = gpt.ModelConfig(vocab_size=32, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, context=32)
tx = make(OptimConfig(learning_rate=1e-2, warmup_steps=5), STEPS, gpt.matrices(config).__contains__)

# The same composition as for one run, on the gradient engine that vmap can see through.
step = pipe(next_token, partial(value_and_grad, engine="func"), step_with(tx))(partial(gpt.apply, config))
together = ensemble(step)

members = [init_state(gpt.init(config, random.fold_in(0, e)), tx) for e in range(MEMBERS)]
states = gather(members)
rows = torch.arange(17).repeat(8, 1) + torch.arange(8)[:, None]
batch = LMBatch(rows % config.vocab_size, torch.ones(8, 16))

for i in range(STEPS):
    states, metrics = together(states, batch)
    if i % 10 == 0 or i == STEPS - 1:
        print(f"step {i:2d}  losses {' '.join(f'{loss:.3f}' for loss in metrics['loss'].tolist())}")

best = metrics["loss"].argmin().item()
print(f"member {best} is the best; as a state of its own: step {member(states, best).step.item()}")
