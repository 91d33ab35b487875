"""The kinds of a model's layers in config.json, where every nth attends to all tokens and the others to a window."""

from collections.abc import Mapping
from typing import Any

KINDS = ("sliding_attention", "full_attention")


def listed(every: int, layers: int, first: int) -> list[str]:
    """The kind of each layer.

    Args:
        every: layers `first`, `first` + `every`, ... attend to all tokens, counted from 0.
    """
    return [KINDS[i >= first and (i - first) % every == 0] for i in range(layers)]


def of(config: Any) -> list[str]:
    """Those of a Config whose layers n-1, 2n-1, ... attend to all tokens, n being its `global_every`."""
    return listed(config.global_every, config.num_layers, config.global_every - 1)


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
    for n in (max(number, 1), *range(1, len(kinds) + 2)):  # several n can give the same list: first the file's own
        if kinds == listed(n, layers, 0 if from_first else n - 1):
            return n
    start = "from the first on " if from_first else ""
    raise ValueError(
        f"layer_types is {kinds!r}: of the num_hidden_layers, every nth one {start}must be full_attention, "
        "and the others sliding_attention"
    )
