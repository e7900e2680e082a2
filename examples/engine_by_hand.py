"""An engine by hand: requests with settings and forms of their own join and leave, and none disturbs another."""

from functools import partial

import torch

from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.infer import engine as engines
from slm_fn.infer.constrain import Grammar, compile
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sample import SampleConfig
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make
from slm_fn.text import bpe
from slm_fn.train.step import init_state, step_with

TEXT = "If music be the food of love, play on; give me excess of it, that, surfeiting, the appetite may sicken. "
STEPS = 60

tokenizer = bpe.train([TEXT], 300)
stop = tokenizer.special("<|end|>")
config = gpt.ModelConfig(tokenizer.vocab_size, dim=64, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=128)
model = partial(gpt.apply, config)
tx = make(OptimConfig(name="muon", learning_rate=1e-2, warmup_steps=5), STEPS, gpt.matrices(config).__contains__)
rows = torch.tensor(tokenizer.encode(TEXT * 2)).unfold(0, 33, 3)
batch = LMBatch(rows, torch.ones(len(rows), 32))
trained = init_state(gpt.init(config, key=0), tx)
step = pipe(next_token, value_and_grad, step_with(tx))(model)
for i, (trained, metrics) in enumerate(run(step, trained, [batch] * STEPS)):
    if i in (0, STEPS - 1):
        print(f"step {i:2d}  loss {metrics['loss']:.3f}")


def ask(prompt: str, temperature: float = 0.0, **more) -> Request:
    return Request(tuple(tokenizer.encode(prompt)), SampleConfig(temperature), stop_ids=frozenset([stop]), **more)


form = compile(tokenizer, [stop], Grammar("regex", "(food|wine) of (love|war)"))
requests = {
    0: ask("If music be", max_tokens=20),
    1: ask("give me", temperature=1.2, seed=7, max_tokens=40),
    2: ask("the ", constraint=form),
    3: ask("play on", max_tokens=8),
}
# The engine does not change; its state does: each function returns the next one, and the old one is dead.
engine = engines.make(model, partial(gpt.init_cache, config), trained.params, EngineConfig(max_batch=3, size=128))
state, said, waiting = engines.init(engine), dict.fromkeys(requests, b""), list(requests)
while state.rows or waiting:
    while waiting and len(state.rows) < engine.config.max_batch:
        state = engines.admit(engine, state, waiting[0], requests[waiting.pop(0)])
    state, tokens = engines.step(engine, state)  # a token for every row, in one pass of the model
    said |= {token.key: said[token.key] + tokenizer.token_bytes(token.id) for token in tokens if token.id != stop}
    if len(said[1]) > 30:
        state = engines.evict(engine, state, key=1)  # as if its reader had left
for key, request in requests.items():
    print(f"{tokenizer.decode(request.prompt)!r} goes on {said[key].decode(errors='replace')!r}")
