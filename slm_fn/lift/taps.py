"""Activations by name: collected (with_acts), summarised (stats), edited (steer), and watched while training (watch).

Invariant: who only looks changes nothing: outputs, losses and gradients are the same bits with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from slm_fn.core.types import Apply, Aux, Loss, Objective, Params, ValueAndGrad

Acts = dict[str, Tensor]
"""Activations by the name of their tap: `0/attn`, `0/ffn`, ..., `final`."""
Tap = Callable[[str, Tensor], Tensor]

STATS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(),
    "std": lambda x: x.std(correction=0),
    "rms": lambda x: x.square().mean().sqrt(),
    "zeros": lambda x: (x == 0).float().mean(),
}
"""A statistic by name: a float32 tensor to a number. One of your own joins by `STATS["name"] = f`."""
PREFIX = "acts/"
"""What the names of watched statistics begin with, in aux, metrics and diary."""


def stats(x: Float[Tensor, ...], names: Iterable[str] = ("mean", "std", "rms", "zeros")) -> dict[str, Tensor]:
    """Statistics over all elements, in float32 and without a gradient; `zeros` is the fraction that is exactly 0.

    Example:
        >>> {name: round(value.item(), 4) for name, value in stats(torch.tensor([0.0, 0.0, 3.0, 1.0])).items()}
        {'mean': 1.0, 'std': 1.2247, 'rms': 1.5811, 'zeros': 0.5}
    """
    return {name: STATS[name](x.detach().float()) for name in names}


def with_acts(apply: Apply, patterns: Sequence[str] = ("*",)) -> Callable[..., tuple[tuple[Any, Any], Acts]]:
    """Lift `apply -> apply+acts`: `((out, cache), acts)`, every activation whose name fits one of the patterns.

    The activations are outputs like any other: they have gradients, and pass through vmap and torch.func.

    Example:
        >>> from functools import partial
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> apply, params = partial(gpt.apply, config), gpt.init(config, key=0)
        >>> (logits, _), acts = with_acts(apply, ["*/ffn", "final"])(params, torch.zeros(1, 5, dtype=torch.long))
        >>> {name: tuple(x.shape) for name, x in acts.items()}
        {'0/ffn': (1, 5, 32), '1/ffn': (1, 5, 32), 'final': (1, 5, 32)}

    Raises:
        ValueError: a pattern that fits no activation; names those there are.
    """

    def collected(params: Params, tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[tuple[Any, Any], Acts]:
        acts: Acts = {}
        names: list[str] = []

        def keep(name: str, x: Tensor) -> Tensor:
            names.append(name)
            if fits(name, patterns):
                acts[name] = x
            return x

        out = _tapped(apply, keep)(params, tokens, *args, **kwargs)
        _check_patterns(patterns, names)
        return out, acts

    return collected


def steer(edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Callable[[Apply], Apply]:
    """Lift `apply -> apply`: activations whose name fits a pattern are replaced by what its function makes of them.

    Example:
        >>> from functools import partial
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=2, ffn_dim=64)
        >>> apply, params = partial(gpt.apply, config), gpt.init(config, key=0)
        >>> blank = steer({"final": torch.zeros_like})(apply)
        >>> blank(params, torch.zeros(1, 5, dtype=torch.long))[0].abs().max().item()
        0.0

    Raises:
        ValueError: a pattern that fits no activation; names those there are.

    References: arXiv 2308.10248 (activation addition).
    """

    def lift(apply: Apply) -> Apply:
        def steered(params: Params, tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            names: list[str] = []

            def edit(name: str, x: Tensor) -> Tensor:
                names.append(name)
                for pattern, f in edits.items():
                    x = f(x) if fits(name, (pattern,)) else x
                return x

            out = _tapped(apply, edit)(params, tokens, *args, **kwargs)
            _check_patterns(edits, names)
            return out

        return steered

    return lift


def watch(names: Sequence[str], patterns: Sequence[str] = ("*",)) -> Callable[[Objective], Objective]:
    """Lift `Objective -> Objective`: aux gains `acts/<layer>/<part>/<stat>` of every activation that fits a pattern.

    The statistics are over all positions of the batch, padding included. Where an objective runs the model more than
    once (both sides of a pair), and where a batch is taken in parts, they are averaged.

    Example:
        >>> from functools import partial
        >>> from slm_fn.core.types import LMBatch
        >>> from slm_fn.loss.lm import next_token
        >>> from slm_fn.nn import gpt
        >>> config = gpt.ModelConfig(vocab_size=64, dim=32, num_layers=1, ffn_dim=64)
        >>> loss = watch(["rms"])(next_token)(partial(gpt.apply, config))
        >>> _, aux = loss(gpt.init(config, 0), LMBatch(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 8)))
        >>> list(aux)
        ['weight', 'acts/0/attn/rms', 'acts/0/ffn/rms', 'acts/final/rms']

    Raises:
        ValueError: no such statistic; when it runs, a pattern that fits no activation.
    """
    for name in names:
        if name not in STATS:
            near = get_close_matches(name, STATS, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STATS)}"
            raise ValueError(f"no statistic of activations is called {name!r}; {hint}")

    def lift(objective: Objective) -> Objective:
        def watched(apply: Apply) -> Loss:
            def loss(params: Params, batch: Any) -> tuple[Tensor, Aux]:
                found: dict[str, list[dict[str, Tensor]]] = {}

                def look(name: str, x: Tensor) -> Tensor:
                    here = found.setdefault(name, [])
                    if fits(name, patterns):
                        here.append(stats(x, names))
                    return x

                value, aux = objective(_tapped(apply, look))(params, batch)
                _check_patterns(patterns, found)
                told = {
                    f"{PREFIX}{name}/{stat}": torch.stack([call[stat] for call in calls]).mean()
                    for name, calls in found.items()
                    if calls
                    for stat in names
                }
                return value, {**aux, **told}

            return loss

        return watched

    return lift


def observe(loss: Loss) -> ValueAndGrad:
    """Lift `Loss -> VG` that makes no gradient: `((value, aux), {})`. Lifts of a VG, as `accumulate`, hold for it too.

    Example:
        >>> vg = observe(lambda params, x: ((params["w"] * x).sum(), {"weight": torch.tensor(1.0)}))
        >>> (value, aux), grads = vg({"w": torch.tensor([2.0])}, torch.tensor([3.0]))
        >>> value.item(), grads
        (6.0, {})
    """

    def vg(params: Params, batch: Any, scale: Tensor | None = None) -> tuple[tuple[Tensor, Aux], Params]:
        with torch.no_grad():
            return loss(params, batch), {}

    return vg


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a name fits one of the patterns of a shell.

    Example:
        >>> fits("10/ffn", ["*/ffn"]), fits("final", ["*/ffn"])
        (True, False)
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# Dynamo refuses fnmatch for its cache. `torch.compiler.assume_constant_result` sets just this, and imports all of
# dynamo to do so: a second, and 70 MiB, in every run that compiles nothing.
fits._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _tapped(apply: Apply, own: Tap) -> Apply:
    """`apply` with a tap of its own; one that it is handed sees what this one lets through."""

    def tapped(params: Params, tokens: Tensor, *args: Any, tap: Tap | None = None, **kwargs: Any) -> tuple[Any, Any]:
        both = own if tap is None else lambda name, x: tap(name, own(name, x))
        return apply(params, tokens, *args, tap=both, **kwargs)

    return tapped


def _check_patterns(patterns: Iterable[str], names: Iterable[str]) -> None:
    known = list(dict.fromkeys(names))
    for pattern in patterns:
        if not any(fits(name, (pattern,)) for name in known):
            raise ValueError(f"no activation is called {pattern!r}; there are {', '.join(known) or 'none'}")
