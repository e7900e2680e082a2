"""An ensemble of training runs under vmap: one step, five members, one pass."""

from functools import partial

import torch

from slm_fn.core import random
from slm_fn.core.compose import pipe
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.lift.ensemble import ensemble, member_state, stack_states
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make_optimizer
from slm_fn.train.step import init_state, step_with

NUM_MEMBERS, STEPS = 5, 40

config = gpt.ModelConfig(
    vocab_size=32, dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=64, context=32
)
apply = partial(gpt.apply, config)
optim = OptimConfig(learning_rate=1e-2, warmup_steps=5)
tx = make_optimizer(optim, STEPS, gpt.matrix_paths(config).__contains__)

# The composition of a single run, with the gradient engine that vmap can trace.
func_gradient = partial(value_and_grad, engine="func")
step = pipe(next_token, func_gradient, step_with(tx))(apply)
ensemble_step = ensemble(step)

keys = [random.fold_in(0, e) for e in range(NUM_MEMBERS)]
states = stack_states([init_state(gpt.init(config, key), tx) for key in keys])
rows = torch.arange(17).repeat(8, 1) + torch.arange(8)[:, None]
batch = LMBatch(rows % config.vocab_size, torch.ones(8, 16))

for i in range(STEPS):
    states, metrics = ensemble_step(states, batch)
    if i % 10 == 0 or i == STEPS - 1:
        losses = " ".join(f"{loss:.3f}" for loss in metrics["loss"].tolist())
        print(f"step {i:2d}  losses {losses}")

best = metrics["loss"].argmin().item()
best_state = member_state(states, best)
print(f"member {best} is the best; its own state has taken {best_state.step.item()} steps")
