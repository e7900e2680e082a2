"""The machine around the devices: plausible reports, and freed memory that is kept."""

import pytest
import torch

from slm_fn.core import host


def test_the_reports_are_plausible():
    assert host.processor_name()
    total = host.total_memory()
    assert total is None or total > 1 << 28
    free = host.free_memory()
    assert free is None or total is None or 0 < free <= total


def test_the_peak_grows_with_what_is_held():
    before = host.peak_memory()
    held = torch.ones(64 << 20)  # 256 MiB
    assert before == 0 or host.peak_memory() >= before
    assert before == 0 or host.peak_memory() >= held.numel() * 4


def test_a_value_that_the_platform_does_not_report_is_none(tmp_path):
    assert host._read_field(str(tmp_path / "absent"), "VmHWM:") is None
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t   2048 kB\n")
    assert host._read_bytes(str(tmp_path / "status"), "VmHWM:") == 2 << 20
    assert host._read_bytes(str(tmp_path / "status"), "VmRSS:") is None


def test_steps_after_the_first_ones_ask_the_kernel_for_no_memory():
    if not host.keep_freed_memory():
        return  # another C library
    resource = pytest.importorskip("resource")

    def work():
        return torch.ones(1 << 23).exp().add(1)

    for _ in range(8):  # until the heap has settled
        work()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        work()
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
    )  # by default 24,000 pages
