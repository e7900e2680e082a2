"""Activations by name: returned, edited (steering), or summarised as statistics during training.

Invariant: reading activations changes nothing: outputs, losses and gradients are the same bits as
without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Aux, Loss, Objective, Params, Tap, ValueAndGrad

Activations: TypeAlias = dict[str, Tensor]
"""Activations by the name of their tap: `0/attn`, `0/ffn`, ..., `final`."""

ApplyWithActivations: TypeAlias = Callable[..., tuple[tuple[Any, Any], Activations]]
"""A model that returns `((output, cache), activations)`; its parameters are those of `Apply`."""


def _mean(x: Tensor) -> Tensor:
    return x.mean()


def _std(x: Tensor) -> Tensor:
    return x.std(correction=0)


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def _zeros(x: Tensor) -> Tensor:
    return (x == 0).float().mean()


STATS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": _mean,
    "std": _std,
    "rms": _rms,
    "zeros": _zeros,
}
"""A statistic by name: a float32 tensor to a number. Register your own by `STATS["name"] = f`."""

STATS_PREFIX = "acts/"
"""Prefix of the names of activation statistics in aux, metrics and the run log."""


def activation_stats(
    x: Float[Tensor, ...], names: Iterable[str] = ("mean", "std", "rms", "zeros")
) -> dict[str, Tensor]:
    """Returns statistics over all elements, computed in float32 and without a gradient.

    Args:
        x: an activation.
        names: keys of `STATS`; `zeros` is the fraction of elements that are exactly 0.

    Example:
        >>> stats = activation_stats(torch.tensor([0.0, 0.0, 3.0, 1.0]))
        >>> {name: round(value.item(), 4) for name, value in stats.items()}
        {'mean': 1.0, 'std': 1.2247, 'rms': 1.5811, 'zeros': 0.5}
    """
    return {name: STATS[name](x.detach().float()) for name in names}


def with_activations(apply: Apply, patterns: Sequence[str] = ("*",)) -> ApplyWithActivations:
    """Lifts `apply` to `((output, cache), activations)`: every activation that matches a pattern.

    The activations are outputs like any other: they have gradients, and pass through vmap and
    torch.func.

    Args:
        apply: the model.
        patterns: shell patterns of activation names, such as `*/ffn`.

    Returns:
        The lifted model; it raises a ValueError for a pattern that matches no activation.

    Example:
        >>> from functools import partial
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> apply, params = partial(gpt.apply, config), gpt.init(config, key=0)
        >>> tokens = torch.zeros(1, 5, dtype=torch.long)
        >>> (logits, _), activations = with_activations(apply, ["*/ffn", "final"])(params, tokens)
        >>> {name: tuple(x.shape) for name, x in activations.items()}
        {'0/ffn': (1, 5, 32), '1/ffn': (1, 5, 32), 'final': (1, 5, 32)}
    """

    def collected(
        params: Params, tokens: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[tuple[Any, Any], Activations]:
        activations: Activations = {}
        names: list[str] = []

        def collect(name: str, x: Tensor) -> Tensor:
            names.append(name)
            if matches_any(name, patterns):
                activations[name] = x
            return x

        output = _with_tap(apply, collect)(params, tokens, *args, **kwargs)
        _check_patterns(patterns, names)
        return output, activations

    return collected


def steer(edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Callable[[Apply], Apply]:
    """Lifts `apply -> apply`: replaces the activations that match a pattern by its function.

    Args:
        edits: a function of the activation by the pattern of its name.

    Returns:
        The lift; the lifted model raises a ValueError for a pattern that matches no activation.

    Example:
        >>> from functools import partial
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> apply, params = partial(gpt.apply, config), gpt.init(config, key=0)
        >>> blank = steer({"final": torch.zeros_like})(apply)
        >>> blank(params, torch.zeros(1, 5, dtype=torch.long))[0].abs().max().item()
        0.0

    References: arXiv 2308.10248 (activation addition).
    """

    def lift(apply: Apply) -> Apply:
        def steered(params: Params, tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            names: list[str] = []

            def edit(name: str, x: Tensor) -> Tensor:
                names.append(name)
                for pattern, function in edits.items():
                    if matches_any(name, (pattern,)):
                        x = function(x)
                return x

            output = _with_tap(apply, edit)(params, tokens, *args, **kwargs)
            _check_patterns(edits, names)
            return output

        return steered

    return lift


def with_activation_stats(
    names: Sequence[str], patterns: Sequence[str] = ("*",)
) -> Callable[[Objective], Objective]:
    """Lifts `Objective -> Objective`: aux gains `acts/<activation>/<stat>`.

    One entry per matching activation and statistic. The statistics are over all positions of the
    batch, padding included. Where an objective runs the model more than once (both sides of a
    pair), and over micro-batches, they are averaged.

    Args:
        names: keys of `STATS`.
        patterns: shell patterns of activation names, such as `*/ffn`.

    Returns:
        The lift; the lifted loss raises a ValueError for a pattern that matches no activation.

    Raises:
        ValueError: no statistic of that name.

    Example:
        >>> from functools import partial
        >>> from slm_fn.core.types import LMBatch
        >>> from slm_fn.loss.lm import next_token
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64)
        >>> loss = with_activation_stats(["rms"])(next_token)(partial(gpt.apply, config))
        >>> batch = LMBatch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 8))
        >>> _, aux = loss(gpt.init(config, 0), batch)
        >>> list(aux)
        ['weight', 'acts/0/attn/rms', 'acts/0/ffn/rms', 'acts/final/rms']
    """
    _check_stat_names(names)

    def lift(objective: Objective) -> Objective:
        def observed_objective(apply: Apply) -> Loss:
            def loss(params: Params, batch: Any) -> tuple[Tensor, Aux]:
                # The statistics of every call of each tap; an empty list where no pattern matches.
                calls: dict[str, list[dict[str, Tensor]]] = {}

                def summarise(name: str, x: Tensor) -> Tensor:
                    stats_of_tap = calls.setdefault(name, [])
                    if matches_any(name, patterns):
                        stats_of_tap.append(activation_stats(x, names))
                    return x

                value, aux = objective(_with_tap(apply, summarise))(params, batch)
                _check_patterns(patterns, calls)
                return value, {**aux, **_average_stats(calls, names)}

            return loss

        return observed_objective

    return lift


def _check_stat_names(names: Iterable[str]) -> None:
    for name in names:
        if name not in STATS:
            nearest = get_close_matches(name, STATS, 1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(STATS)}"
            raise ValueError(f"no statistic of activations is called {name!r}; {hint}")


def _average_stats(
    calls: Mapping[str, Sequence[Mapping[str, Tensor]]], stat_names: Sequence[str]
) -> Aux:
    """Averages the statistics of each tap over the calls of the model."""
    averages: Aux = {}
    for tap_name, stats_of_calls in calls.items():
        if not stats_of_calls:
            continue
        for stat in stat_names:
            values = torch.stack([stats[stat] for stats in stats_of_calls])
            averages[f"{STATS_PREFIX}{tap_name}/{stat}"] = values.mean()
    return averages


def value_only(loss: Loss) -> ValueAndGrad:
    """Lifts `Loss -> VG` without a gradient: `((value, aux), {})`.

    Lifts of a VG, such as `accumulate`, apply to it.

    Example:
        >>> vg = value_only(lambda p, x: ((p["w"] * x).sum(), {"weight": torch.tensor(1.0)}))
        >>> (value, aux), grads = vg({"w": torch.tensor([2.0])}, torch.tensor([3.0]))
        >>> value.item(), grads
        (6.0, {})
    """

    def vg(
        params: Params,
        batch: Any,
        scale: Tensor | None = None,
    ) -> tuple[tuple[Tensor, Aux], Params]:
        with torch.no_grad():
            return loss(params, batch), {}

    return vg


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name matches one of the shell patterns.

    Example:
        >>> matches_any("10/ffn", ["*/ffn"]), matches_any("final", ["*/ffn"])
        (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# Dynamo cannot trace fnmatch, which caches its patterns. This marks the result as a constant of
# the trace, as `torch.compiler.assume_constant_result` does by setting this very attribute. That
# function imports all of dynamo to do so: a second, and 70 MiB, in every run that compiles
# nothing.
matches_any._dynamo_marked_constant = True  # type: ignore[attr-defined]  # PyTorch's own marker


def _with_tap(apply: Apply, inner_tap: Tap) -> Apply:
    """Lifts `apply -> apply` with a tap; the caller's own tap receives the result of this one."""

    def tapped(
        params: Params,
        tokens: Tensor,
        *args: Any,
        tap: Tap | None = None,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        if tap is None:
            return apply(params, tokens, *args, tap=inner_tap, **kwargs)
        outer_tap = tap

        def both_taps(name: str, x: Tensor) -> Tensor:
            return outer_tap(name, inner_tap(name, x))

        return apply(params, tokens, *args, tap=both_taps, **kwargs)

    return tapped


def _check_patterns(patterns: Iterable[str], names: Iterable[str]) -> None:
    known = list(dict.fromkeys(names))
    for pattern in patterns:
        if not any(matches_any(name, (pattern,)) for name in known):
            raise ValueError(
                f"no activation is called {pattern!r}; there are {', '.join(known) or 'none'}"
            )
