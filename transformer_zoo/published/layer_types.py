"""The kinds of a model's layers in config.json, where every nth attends to all tokens and the others to a window."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.published.spec import Key

KINDS = ("sliding_attention", "full_attention")


def listed(every: int, layers: int, first: int) -> list[str]:
    """The kind of each layer.

    Args:
        every: layers `first`, `first` + `every`, ... attend to all tokens, counted from 0.
    """
    return [KINDS[i >= first and (i - first) % every == 0] for i in range(layers)]


def number_for(kinds: list[Any], number: int, listed: Callable[[int], list[Any]]) -> int | None:
    """An n with this list of the layers' kinds: `number` if it has. None: no n has."""
    return next((n for n in (max(number, 1), *range(1, len(kinds) + 2)) if listed(n) == kinds), None)


def every(number: int, settings: Mapping[str, Any], *, from_first: bool) -> int:
    """n, from the number in config.json, or from today's list `layer_types`, which takes precedence.

    Args:
        from_first: whether layers 0, n, 2n, ... attend to all tokens, or layers n-1, 2n-1, ...

    Raises:
        ValueError: the list is another one.
    """
    kinds = settings["layer_types"]
    if kinds is None:
        return number
    layers = settings.get("num_hidden_layers")
    if (n := number_for(kinds, number, lambda n: listed(n, layers, 0 if from_first else n - 1))) is not None:
        return n
    start = "from the first on " if from_first else ""
    raise ValueError(
        f"layer_types is {kinds!r}: of the num_hidden_layers, every nth one {start}must be full_attention, "
        "and the others sliding_attention"
    )


def alternating(default: int) -> Key:
    """The key of the field `global_every`=n: layers n-1, 2n-1, ... attend to all tokens. `ALTERNATING` goes with it.

    Args:
        default: n of a config.json without it.
    """
    return Key("sliding_window_pattern", default, functools.partial(every, from_first=False))


ALTERNATING: dict[str, Any] = {
    "defaults": {"layer_types": None},
    "derived": {"layer_types": lambda config: listed(config.global_every, config.num_layers, config.global_every - 1)},
}
"""What goes with the key of `alternating`: the list of the layers' kinds."""
