"""The loss over many batches."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from transformer_zoo import trees
from transformer_zoo.objectives.metrics import ByClass


class Report(dict[str, float]):
    """Measures by name.

    Attributes:
        by_class: those of each class, of a classifier; else None.
    """

    by_class: ByClass | None = None


@functools.lru_cache(maxsize=8)
def _compiled(model: Any, objective: Any) -> Callable[..., Any]:
    return jax.jit(lambda params, batch: (objective.sums(model, params, batch), objective.counts(batch)))


def evaluate(model: Any, objective: Any, params: trees.Tree, batches: Iterable[dict[str, jax.Array]]) -> Report:
    """The report of the objective over all batches together, with their numbers of tokens, bytes, ...

    Sums are added in float64. Every token counts alike, however the rows are cut.

    Raises:
        ValueError: there is no batch, or no target in the batches.
    """
    run, sums, counts = _compiled(model, objective), {}, {}
    for batch in batches:
        for total, part in zip((sums, counts), jax.device_get(run(params, batch)), strict=True):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + np.float64(value)
    if not any(counts.values()):
        raise ValueError("there is nothing to evaluate: the source has no document, or none with a target")
    report = Report({name: float(value) for name, value in objective.report(sums, counts).items()})
    report.update({name: int(x) if float(x).is_integer() else float(x) for name, x in counts.items()})
    report.by_class = objective.by_class(sums)
    return report
