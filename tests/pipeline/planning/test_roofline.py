"""The matmul rate grows with the size of the product, as a rate that leaves out overheads does."""

import torch

from slm_fn.pipeline.planning import roofline

CPU = torch.device("cpu")


def test_large_products_come_nearer_to_the_limit() -> None:
    assert roofline.matmul_rate(CPU, torch.float32, 512) > 3 * roofline.matmul_rate(
        CPU, torch.float32, 8
    )


def test_a_rate_is_operations_over_seconds() -> None:
    # 2 * 256 ** 3 operations: between a machine of thirty years ago and one of in thirty years
    assert 1e7 < roofline.matmul_rate(CPU, torch.float32, 256) < 1e15
