"""The clock of training steps, and the tokens that every trainer gets."""

import torch

from slm_fn.bench.train.timing import StepWorkload, random_tokens, time_steps


def test_the_clock_runs_over_the_timed_steps_alone() -> None:
    workload = StepWorkload(8, 2, 4, 3, "cpu", num_warmup_steps=2)
    taken: list[int] = []

    def step(batch: int) -> torch.Tensor:
        taken.append(batch)
        return torch.tensor(float(batch))

    timing = time_steps(step, iter(range(5)), workload)
    assert taken == [0, 1, 2, 3, 4]
    assert (timing.first_loss, timing.last_loss) == (0, 4)


def test_every_trainer_gets_the_same_tokens() -> None:
    workload = StepWorkload(100, 4, 50, 1, "cpu")
    assert (random_tokens(workload, 3) == random_tokens(workload, 3)).all()
    assert (random_tokens(workload, 3) != random_tokens(workload, 4)).any()
    tokens = random_tokens(workload, 0)
    assert tokens.shape == (4, 51)
    assert 0 <= tokens.min() < tokens.max() < 100
    assert tokens.mean() < 35  # low ids are more frequent: a model can learn that
