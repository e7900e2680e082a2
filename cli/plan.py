"""`slm plan`: what a config costs before it is run, and where it fits.

Invariant: nothing is trained and nothing is written.
"""

from __future__ import annotations

from typing import Any

import click

from slm_fn.cli import options


@click.command("plan")
@click.argument("config")
@click.option("--devices", "num_devices", default=1, show_default=True, help="How many to spread over.")
@click.option("--device-memory", "memory_gib", type=float, metavar="GIB", help="Of each device (default: this one's).")
@click.option(
    "--device-tflops", "tflops", type=float, metavar="T", help="Matmul rate of each device (default: measured here)."
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
    """Parameters, FLOPs, memory and time of pre-training by CONFIG, and the placement to take.

    \b
    Example:
        slm plan tiny
        slm plan base --devices 4 --device-memory 24 --device-tflops 150
    """
    from slm_fn import config as configs
    from slm_fn.pipeline.budget import budget

    found = budget(configs.load(config, overrides), device, num_devices, memory_gib, tflops)
    if as_json:
        options.print_json(found)
        return
    parts = [[part, f"{number:,}", f"{number / found.params:.0%}"] for part, number in found.params_by_part.items()]
    options.print_table(f"{config}: {found.params:,} parameters", ["part", "parameters", "share"], parts)
    options.print_table(
        f"memory, MiB, with {found.rows_at_a_time} rows at a time", ["to train", "", "to serve", ""], _memory(found)
    )
    options.print_table(
        f"batch {found.batch_size} x {found.context} on {found.device}: {_mib(found.device_memory_mib)} MiB each",
        ["placement", "rows at a time", "MiB a device", "fits", "tok/s", "takes"],
        [_placement(placement) for placement in found.placements],
    )
    for line in _sentences(found):
        click.echo(line)


def _mib(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"


def _memory(found: Any) -> list[list[str]]:
    train = [
        ["parameters", found.train_params_mib],
        ["gradients", found.train_gradients_mib],
        ["optimizer", found.train_optimizer_mib],
        [f"activations, {found.precision}", found.train_activations_mib],
        ["  with remat", found.train_activations_remat_mib],
        ["peak of a process", found.train_peak_mib],
        ["  with remat", found.train_peak_remat_mib],
    ]
    serve = [[f"weights {name}", value] for name, value in found.serve_weights_mib.items()]
    serve += [[f"cache a row, {name}", value] for name, value in found.kv_cache_mib_per_row.items()]
    serve += [["", None]] * (len(train) - len(serve))
    return [
        [name, _mib(value), other, "" if size is None else f"{size:,.1f}"]
        for (name, value), (other, size) in zip(train, serve, strict=True)
    ]


def _placement(placement: Any) -> list[str]:
    where = placement.where if placement.devices == 1 else f"{placement.where} over {placement.devices}"
    return [
        where + (", remat" if placement.remat else ""),
        f"{placement.rows_at_a_time}" + (f" ({placement.accumulate} parts)" if placement.accumulate > 1 else ""),
        _mib(placement.memory_mib),
        "yes" if placement.fits else "no",
        f"{placement.tok_per_s:,.0f}",
        duration(placement.hours),
    ]


def _sentences(found: Any) -> list[str]:
    lines = [
        f"{found.flops_per_token / 1e6:,.0f} MFLOP per token; the config trains on {found.tokens:,} tokens, "
        f"{found.tokens_per_param:.1f} per parameter (20 is the usual advice)",
        f"speed is a guess: {found.speed_from}; `slm bench train` measures it",
    ]
    best = found.recommended
    if best is None:
        return [*lines, "nothing fits: take more devices, a smaller model or a shorter context"]
    how = "; ".join(best.settings) or "the config as it is"
    return [*lines, f"take {best.where}: {how}"]


def duration(hours: float) -> str:
    """A time for a person.

    Example:
        >>> duration(0.01), duration(1.5), duration(100)
        ('36 s', '1.5 h', '4.2 days')
    """
    if hours < 1 / 30:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"
