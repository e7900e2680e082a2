"""Plumbing: composition and streams are lazy and in order."""

import torch

from slm_fn.core.compose import pipe, run
from slm_fn.core.types import TrainState


def test_pipe_goes_from_left_to_right_and_may_be_empty():
    assert pipe(lambda x: x + 1, lambda x: x * 10)(1) == 20
    assert pipe()(3) == 3


def test_run_threads_the_state_and_draws_one_batch_per_step():
    drawn = []

    def stream():
        for n in range(1, 9):
            drawn.append(n)
            yield n

    def step(state, batch):
        return state._replace(step=state.step + batch), {"batch": torch.tensor(batch)}

    results = run(step, TrainState({}, (), torch.tensor(0)), stream())
    assert [next(results)[0].step.item() for _ in range(3)] == [1, 3, 6]
    assert drawn == [1, 2, 3]
