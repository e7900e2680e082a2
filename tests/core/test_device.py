"""Devices: names resolve or are refused; mixed precision keeps float32 parameters."""

import json

import pytest
import torch

from slm_fn.core import device, tree
from slm_fn.core.grads import value_and_grad
from slm_fn.loss.lm import next_token

CPU = torch.device("cpu")


def test_auto_is_the_best_that_is_there():
    assert device.resolve("auto").type == device.available()[0]
    assert device.available()[-1] == "cpu"
    assert set(device.available()) <= set(device.KINDS)


@pytest.mark.parametrize("name", ["tpu", "", "cpu:banana", "cuda:99"])
def test_an_unavailable_device_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match="device") as refusal:
        device.resolve(name)
    assert "\n" not in str(refusal.value)


def test_precision_names():
    assert device.resolve_dtype("float32", CPU) == torch.float32
    assert device.resolve_dtype("bfloat16", CPU) == torch.bfloat16
    assert device.resolve_dtype("float16", CPU) == torch.float16
    assert device.resolve_dtype("tf32", CPU) == torch.float32
    assert device.resolve_dtype("auto", CPU) == device.matmul_dtype(CPU)
    with pytest.raises(ValueError, match="'float64' is not one of"):
        device.resolve_dtype("float64", CPU)


def test_bf16_compute_keeps_float32_masters_and_gradients(config, rough, batch, model, gap):
    params, rows = rough(config), batch(config)
    dtypes = []

    def watched(params, tokens, **kwargs):
        dtypes.append({path: leaf.dtype for path, leaf in tree.named_leaves(params).items()})
        return model(params, tokens, **kwargs)

    mixed = next_token(device.with_compute_dtype(torch.bfloat16)(watched))
    (value, _), grads = value_and_grad(mixed)(params, rows)
    (want, _), exact = value_and_grad(next_token(model))(params, rows)
    assert dtypes[0].pop("embed") == torch.float32
    assert set(dtypes[0].values()) == {torch.bfloat16}
    assert {leaf.dtype for leaf in tree.leaves((params, grads, value))} == {torch.float32}
    assert value != want
    assert abs(value - want) < 0.02 * want
    assert gap(grads, exact) < 0.1


def test_bf16_weights_sum_their_gradient_in_float32(config, rough, batch, model):
    # A row of the embedding that many tokens share: bf16 sums would lose all but the first few.
    params = rough(config)
    rows = batch(config, rows=8, length=24)
    rows = rows._replace(tokens=rows.tokens % 2, mask=torch.ones_like(rows.mask))
    _, grads = value_and_grad(next_token(device.with_compute_dtype(torch.bfloat16)(model)))(
        params, rows
    )
    _, exact = value_and_grad(next_token(model))(params, rows)
    assert torch.cosine_similarity(grads["embed"].flatten(), exact["embed"].flatten(), 0) > 0.995


def test_float32_compute_is_the_function_itself(model):
    assert device.with_compute_dtype(torch.float32)(model) is model


def test_bf16_logits_are_close_to_float32(config, rough, batch, model):
    params, tokens = rough(config), batch(config).tokens
    exact, rounded = (
        model(params, tokens)[0],
        device.with_compute_dtype(torch.bfloat16)(model)(params, tokens)[0],
    )
    assert rounded.dtype == torch.bfloat16
    assert (exact - rounded.float()).abs().max() < 0.05 * exact.abs().max()


def test_description_is_plain_json():
    description = json.loads(json.dumps(device.describe()))
    assert description["auto"] == description["devices"][0]["device"]
    assert description["devices"][-1]["memory_mib"] > 100


def test_threads_are_set_and_reported():
    before = torch.get_num_threads()
    try:
        assert device.set_num_threads(2) == torch.get_num_threads() == 2
        assert device.set_num_threads(0) == 2
    finally:
        torch.set_num_threads(before)


def test_small_questions_about_tensors_and_clocks():
    x = torch.ones(1)
    assert not device.prefers_fused_attention(x)
    assert not device.needs_contiguous_attention(x)
    assert device.synchronize(CPU) is None


def test_tf32_is_allowed_and_forbidden_again():
    before = torch.get_float32_matmul_precision()
    try:
        device.allow_tf32(True)
        assert torch.get_float32_matmul_precision() == "high"
        device.allow_tf32(False)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_where_nothing_is_recorded_the_work_itself_is_done_again():
    cpu, done = torch.device("cpu"), []
    with device.side_stream(cpu):
        again = device.capture_graph(cpu, lambda: done.append(1) or len(done))
    assert done == []  # recording does no work
    assert [again(), again()] == [1, 2]
    assert not device.supports_graph_capture(cpu)


def test_a_batch_is_uploaded_whole(config, batch, same):
    rows = batch(config)
    assert same(device.upload(rows, torch.device("cpu")), rows)
