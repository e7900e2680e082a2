"""`slm plan`: what training by a config costs, and where it fits.

Invariant: nothing is trained and nothing is written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from slm_fn.cli import options, output

if TYPE_CHECKING:
    from slm_fn.pipeline.planning.budget import Budget, Placement

PLACEMENT_COLUMNS = ["placement", "rows at a time", "MiB per device", "fits", "tok/s", "time"]


@click.command("plan")
@click.argument("config")
@click.option(
    "--devices", "num_devices", default=1, show_default=True, help="Number of devices to train on."
)
@click.option(
    "--device-memory",
    "memory_gib",
    type=float,
    metavar="GIB",
    help="Memory of each device (default: this machine's).",
)
@click.option(
    "--device-tflops",
    "tflops",
    type=float,
    metavar="T",
    help="Matmul rate of each device in TFLOP/s (default: measured here).",
)
@options.overrides
@options.device
@options.as_json
def command(
    config: str,
    num_devices: int,
    memory_gib: float | None,
    tflops: float | None,
    overrides: tuple[str, ...],
    device: str,
    as_json: bool,
) -> None:
    """Estimate parameters, FLOPs, memory and time of pre-training by CONFIG.

    Recommends the placement to use.

    \b
    Example:
        slm plan tiny
        slm plan base --devices 4 --device-memory 24 --device-tflops 150
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.planning.budget import budget

    costs = budget(configs.load(config, overrides), device, num_devices, memory_gib, tflops)
    if as_json:
        output.print_json(costs)
    else:
        _print_budget(config, costs)


def _print_budget(config: str, costs: Budget) -> None:
    output.print_table(
        f"{config}: {costs.params:,} parameters",
        ["group", "parameters", "share"],
        _parameter_rows(costs),
    )
    output.print_table(
        f"memory in MiB, with {costs.rows_at_a_time} rows at a time",
        ["to train", "", "to serve", ""],
        _memory_rows(costs),
    )
    output.print_table(
        f"batch {costs.batch_size} x {costs.context} on {costs.device}: "
        f"{_format_mib(costs.device_memory_mib)} MiB each",
        PLACEMENT_COLUMNS,
        [_placement_cells(placement) for placement in costs.placements],
    )
    click.echo(
        f"{costs.flops_per_token / 1e6:,.0f} MFLOP per token; "
        f"the config trains on {costs.tokens:,} tokens, "
        f"{costs.tokens_per_param:.1f} per parameter (20 is the usual recommendation)"
    )
    click.echo(f"speed is an estimate: {costs.speed_from}; `slm bench train` measures it")
    click.echo(_recommendation(costs.recommended))


def _format_mib(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _parameter_rows(costs: Budget) -> list[list[str]]:
    return [
        [group, f"{number:,}", f"{number / costs.params:.0%}"]
        for group, number in costs.params_by_part.items()
    ]


def _memory_rows(costs: Budget) -> list[list[str]]:
    """Returns the memory to train and, in two further columns, the memory to serve."""
    train = [
        ["parameters", _format_mib(costs.train_params_mib)],
        ["gradients", _format_mib(costs.train_gradients_mib)],
        ["optimizer", _format_mib(costs.train_optimizer_mib)],
        [f"activations, {costs.precision}", _format_mib(costs.train_activations_mib)],
        ["  with remat", _format_mib(costs.train_activations_remat_mib)],
        ["peak of a process", _format_mib(costs.train_peak_mib)],
        ["  with remat", _format_mib(costs.train_peak_remat_mib)],
    ]
    serve = [
        *_labelled_sizes("weights", costs.serve_weights_mib),
        *_labelled_sizes("KV cache per sequence,", costs.kv_cache_mib_per_row),
    ]
    serve += [["", ""]] * (len(train) - len(serve))
    return [left + right for left, right in zip(train, serve, strict=True)]


def _labelled_sizes(label: str, sizes_mib: dict[str, float]) -> list[list[str]]:
    return [[f"{label} {precision}", f"{size:,.1f}"] for precision, size in sizes_mib.items()]


def _placement_cells(placement: Placement) -> list[str]:
    where: str = placement.where
    if placement.devices > 1:
        where += f" over {placement.devices}"
    if placement.remat:
        where += ", remat"
    rows = f"{placement.rows_at_a_time}"
    if placement.accumulate > 1:
        rows += f" ({placement.accumulate} micro-batches)"
    return [
        where,
        rows,
        _format_mib(placement.memory_mib),
        "yes" if placement.fits else "no",
        f"{placement.tok_per_s:,.0f}",
        format_hours(placement.hours),
    ]


def _recommendation(placement: Placement | None) -> str:
    if placement is None:
        return "nothing fits: use more devices, a smaller model or a shorter context"
    settings = "; ".join(placement.settings) or "the config as it is"
    return f"use {placement.where}: {settings}"


def format_hours(hours: float) -> str:
    """Returns a duration in a unit that suits its length.

    Example:
        >>> format_hours(0.01), format_hours(1.5), format_hours(100)
        ('36 s', '1.5 h', '4.2 days')
    """
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    if hours < 48:
        return f"{hours:.1f} h"
    return f"{hours / 24:.1f} days"
