"""The number of steps that passes over the training split take, settled before the first step: schedules need it."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from transformer_zoo import json_files
from transformer_zoo.data.pipeline import Pipeline

SECONDS = 600
"""The longest time that is spent on counting."""


def steps_of(epochs: float, batches: Pipeline, batch_size: int, cache: Path, fingerprint: Any, tell: Callable) -> int:
    """The number of batches that hold all rows of so many passes; of a pass that is not whole, its share of the rows.

    Args:
        batch_size: rows of a global batch.
        cache: a folder that keeps what was counted, for other runs with the same rows. One that cannot be written does
            no harm.
        fingerprint: of the documents, as JSON.
        tell: called with a line for the user before rows are counted, and with the number of steps.

    Raises:
        ValueError: counting would take longer than `SECONDS`; the message has an estimate of the steps.
    """
    share = Fraction(str(epochs))  # 1.1 is eleven tenths
    rows = _rows_of_passes(math.ceil(share), epochs, batches, batch_size, cache, fingerprint, tell)
    steps = max(1, math.ceil(_rows(share, rows) / batch_size))
    tell(f"training.epochs={epochs:g}: {steps:,} steps, of {batch_size} rows; the first pass has {rows[0]:,} rows")
    return steps


def _rows(share: Fraction, rows: list[int]) -> Fraction:
    """Rows in so many passes, from those of each."""
    whole = math.floor(share)
    return sum(rows[:whole]) + (share - whole) * (rows[whole] if share > whole else 0)


def _rows_of_passes(
    passes: int, epochs: float, batches: Pipeline, batch_size: int, cache: Path, fingerprint: Any, tell: Callable
) -> list[int]:
    """The rows of each pass, from the cache or counted."""
    key = json.dumps([batches.rows, fingerprint], sort_keys=True).encode()
    name = f"{hashlib.sha256(key).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # there is no home
        known = json_files.read(cache.expanduser() / name).get("rows")
        if isinstance(known, list) and len(known) >= passes:
            return known
    if not batches.row_per_document:
        counted = "1 pass" if passes == 1 else f"{passes} passes"
        tell(f"counting the rows of {counted} over the training split, for training.epochs")
    rows, start = [0] * passes, time.monotonic()
    for number, part, count in batches.count_rows(passes):
        rows[number] = count
        if time.monotonic() - start > SECONDS and (number, part) != (passes - 1, 1.0):
            estimate = math.ceil(epochs * sum(rows) / (number + part) / batch_size)
            raise ValueError(
                f"training.epochs={epochs:g}: to count the rows of the training split takes more "
                f"than {SECONDS / 60:g} minutes. Give training.steps instead: about {estimate} are {epochs:g} epochs"
            )
    with contextlib.suppress(OSError, RuntimeError):
        cache = cache.expanduser()
        cache.mkdir(parents=True, exist_ok=True)
        json_files.write(cache / name, json.dumps({"rows": rows}))
    return rows
