"""The decoding engine by hand: requests with their own settings and constraints join and leave."""

from functools import partial

import torch

from slm_fn.core.compose import pipe, run
from slm_fn.core.grads import value_and_grad
from slm_fn.core.types import LMBatch
from slm_fn.infer import engine as engines
from slm_fn.infer.constraints import Grammar, compile
from slm_fn.infer.decoder import Decoder
from slm_fn.infer.engine import EngineConfig
from slm_fn.infer.request import Request
from slm_fn.infer.sampling import SampleConfig
from slm_fn.loss.lm import next_token
from slm_fn.nn import gpt
from slm_fn.optim.recipes import OptimConfig, make_optimizer
from slm_fn.text.training import bpe
from slm_fn.train.step import init_state, step_with

TEXT = "If music be the food of love, play on; give me excess of it, that, surfeiting, "
TEXT += "the appetite may sicken. "
STEPS = 60

tokenizer = bpe.train([TEXT], 300)
stop = tokenizer.special_id("<|end|>")
config = gpt.ModelConfig(tokenizer.vocab_size, dim=64, num_layers=2, ffn_dim=128)
apply = partial(gpt.apply, config)
optim = OptimConfig(name="muon", learning_rate=1e-2, warmup_steps=5)
tx = make_optimizer(optim, STEPS, gpt.matrix_paths(config).__contains__)
step = pipe(next_token, value_and_grad, step_with(tx))(apply)

rows = torch.tensor(tokenizer.encode(TEXT * 2)).unfold(0, 33, 3)
batch = LMBatch(rows, torch.ones(len(rows), 32))
trained = init_state(gpt.init(config, key=0), tx)
for trained, metrics in run(step, trained, [batch] * STEPS):
    if trained.step in (1, STEPS):
        print(f"step {trained.step - 1:2d}  loss {metrics['loss']:.3f}")


def request(prompt: str, temperature: float = 0.0, **options) -> Request:
    ids = tuple(tokenizer.encode(prompt))
    return Request(ids, SampleConfig(temperature), stop_ids=frozenset([stop]), **options)


grammar = compile(tokenizer, [stop], Grammar("regex", "(food|wine) of (love|war)"))
requests = {
    0: request("If music be", max_tokens=20),
    1: request("give me", temperature=1.2, seed=7, max_tokens=40),
    2: request("the ", constraint=grammar),
    3: request("play on", max_tokens=8),
}
# The engine never changes. Each function returns the next state and invalidates the one it
# received.
decoder = Decoder(apply, partial(gpt.init_cache, config), trained.params)
engine_config = EngineConfig(max_batch=3, context=128)
engine = engines.make(decoder, engine_config)
state = engines.init(engine)
replies = dict.fromkeys(requests, b"")
waiting = list(requests)
while state.sequences or waiting:
    while waiting and len(state.sequences) < engine_config.max_batch:
        key = waiting.pop(0)
        state = engines.admit(engine, state, key, requests[key])
    state, tokens = engines.step(engine, state)  # one pass of the model, a token per request
    for token in tokens:
        if token.id != stop:
            replies[token.key] += tokenizer.token_bytes(token.id)
    if len(replies[1]) > 30:
        state = engines.evict(engine, state, key=1)  # as if its client had disconnected
for key, reply in replies.items():
    prompt = tokenizer.decode(requests[key].prompt)
    print(f"{prompt!r} goes on {reply.decode(errors='replace')!r}")
