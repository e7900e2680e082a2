"""value_and_grad, accumulate, per_example and remat on losses that are differentiated by hand."""

import pytest
import torch

from slm_fn.core import tree
from slm_fn.core.grads import accumulate, per_example, remat, value_and_grad

ENGINES = ["autograd", "func"]


def weighted(params, batch):
    """Mean of `w . x` over weighted rows: its gradient is the weighted mean of x."""
    x, weight = batch
    total = weight.sum()
    return ((x @ params["w"]) * weight).sum() / torch.where(total > 0, total, 1), {
        "weight": total,
        "twice": 2 * total,
    }


PARAMS = {"w": torch.tensor([1.0, -2.0])}
X = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 4.0], [1.0, 1.0]])


@pytest.mark.parametrize("engine", ENGINES)
def test_value_aux_and_gradient_by_hand(engine, purely):
    (value, aux), grads = purely(value_and_grad(weighted, engine), PARAMS, (X, torch.ones(4)))
    assert value == -2.0
    assert aux["weight"] == 4
    assert grads["w"].tolist() == [1.0, 1.5]
    assert not value.requires_grad
    assert not aux["twice"].requires_grad


@pytest.mark.parametrize("engine", ENGINES)
def test_what_the_loss_does_not_read_has_gradient_zero(engine):
    params = {**PARAMS, "unread": torch.ones(3)}
    _, grads = value_and_grad(weighted, engine)(params, (X, torch.ones(4)))
    assert grads["unread"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_made_also_where_they_are_off(engine):
    with torch.no_grad():
        _, grads = value_and_grad(weighted, engine)(PARAMS, (X, torch.ones(4)))
    assert grads["w"].tolist() == [1.0, 1.5]


@pytest.mark.parametrize(
    "weight", [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 3, 1], [0.25, 0.25, 0, 0], [0, 0, 0, 0]], ids=str
)
@pytest.mark.parametrize("num_micro", [1, 2, 3, 4, 9])
def test_parts_count_by_their_weight(num_micro, weight):
    batch = (X, torch.tensor(weight, dtype=torch.float32))
    (value, aux), grads = value_and_grad(weighted)(PARAMS, batch)
    (value_, aux_), grads_ = accumulate(num_micro)(value_and_grad(weighted))(PARAMS, batch)
    assert torch.allclose(value, value_)
    assert torch.allclose(grads["w"], grads_["w"])
    assert aux["weight"] == aux_["weight"]


def test_per_example_gives_every_row_its_gradient():
    assert torch.equal(per_example(weighted)(PARAMS, (X, torch.ones(4)))["w"], X)


def test_the_func_engine_differentiates_twice():
    def cubic(params, batch):
        return (params["w"] ** 3).sum(), {"weight": torch.ones(())}

    curvature = torch.func.grad(lambda p: value_and_grad(cubic, "func")(p, None)[1]["w"].sum())(
        PARAMS
    )
    assert curvature["w"].tolist() == [6.0, -12.0]


def test_the_autograd_engine_keeps_no_graph():
    _, grads = value_and_grad(weighted)(PARAMS, (X, torch.ones(4)))
    assert all(g.grad_fn is None for g in tree.leaves(grads))


def test_remat_runs_again_on_the_way_back_and_draws_the_same(purely):
    runs = []

    def with_random_mask(x):
        runs.append(1)
        return (x * torch.rand(3)).square().sum()

    x = torch.ones(3, requires_grad=True)
    torch.manual_seed(0)
    kept = torch.autograd.grad(with_random_mask(x), x)[0]
    torch.manual_seed(0)
    again = torch.autograd.grad(remat(with_random_mask)(x), x)[0]
    assert torch.equal(kept, again)
    assert len(runs) == 3
