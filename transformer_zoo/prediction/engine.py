"""Runs rows of all lengths through a program, in batches of one size and of few lengths."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

Row = dict[str, np.ndarray]
"""A row: arrays [T] by names that end in BT, `tokens_BT` among them."""
Outputs = dict[str, np.ndarray]
"""What a program returns of a row, without padding: the arrays whose names have BT in their dimensions are [T, ...]."""

SHORTEST = 16  # length of the shortest rows that a program is compiled for; each next one is twice as long
PROGRAMS = 8  # lengths for which programs are compiled, at most
CHUNK = 512  # inputs that are sorted by length together


def run(
    program: Callable[..., dict[str, jax.Array]], params: Any, rows: Sequence[Row], size: int, limit: int
) -> list[Outputs]:
    """The outputs of rows, in their order.

    Args:
        program: (params, batch) -> arrays with the rows in front. A batch is the rows [B, T], padded on the right, and
            `valid_BT`.
        size: rows in a batch, B.
        limit: the largest length, T (`limit_of`).

    Raises:
        FloatingPointError: an output is not a number.
    """
    found: list[Outputs] = [{} for _ in rows]
    lengths = [len(row["tokens_BT"]) for row in rows]
    order = np.argsort(lengths, kind="stable")
    with _on_their_devices(params):
        for chunk in (order[i : i + size] for i in range(0, len(order), size)):
            batch = _batch([rows[i] for i in chunk], size, padded_length(lengths[chunk[-1]], limit))
            for name, x in jax.device_get(program(params, batch)).items():
                per_token = "BT" in name.rpartition("_")[2]
                if np.isnan(x[: len(chunk)]).any():
                    raise FloatingPointError(
                        "the model's output is not a number (NaN): its weights are damaged, or too large for its dtype"
                    )
                for number, i in enumerate(chunk):
                    found[i][name] = x[number, : lengths[i]] if per_token else x[number]
    return found


def limit_of(rows: Iterable[Row], limit: int | None) -> int:
    """The largest length of rows that a model has no limit for: the longest of all rows, as a power of two."""
    return power_of_two(max((len(row["tokens_BT"]) for row in rows), default=1)) if limit is None else limit


def padded_length(tokens: int, limit: int) -> int:
    """The padded length of a row with this number of tokens: a power of two, or the limit."""
    shortest = max(SHORTEST, power_of_two(limit) >> (PROGRAMS - 1))
    return min(max(shortest, power_of_two(tokens)), limit)


def batch_size_for(rows: int, inputs: int, largest: int) -> int:
    """Rows in a batch: the largest number, or a smaller one for a few rows. All chunks of inputs have the same."""
    return min(largest, CHUNK if inputs > CHUNK else power_of_two(rows))


def chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The items, `CHUNK` at a time."""
    return (items[start : start + CHUNK] for start in range(0, len(items), CHUNK))


def power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _batch(rows: Sequence[Row], size: int, length: int) -> Row:
    """Rows padded on the right to [size, length]; further rows are empty."""
    shape = size, length
    batch = {name: np.zeros(shape, x.dtype) for name, x in rows[0].items()} | {"valid_BT": np.zeros(shape, bool)}
    for number, row in enumerate(rows):
        for name, x in row.items():
            batch[name][number, : len(x)] = x
        batch["valid_BT"][number, : len(row["tokens_BT"])] = True
    return batch


def _on_their_devices(params: Any) -> contextlib.AbstractContextManager:
    """The context in which a program runs where its parameters lie."""
    sharding = jax.tree.leaves(params)[0].sharding
    device, *others = sharding.device_set
    return jax.set_mesh(sharding.mesh) if others else jax.default_device(device)
