"""The best evaluation of a run by one of its measures, from the lines of metrics.jsonl."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from transformer_zoo import logs, trees
from transformer_zoo.config import Evaluation
from transformer_zoo.logs import HELD_OUT

Direction = Literal["lowest", "highest"]

WORDS: dict[str, Direction] = {
    **dict.fromkeys(("loss", "perplexity", "entropy", "bits"), "lowest"),
    **dict.fromkeys(("accuracy", "precision", "recall", "f1", "match", "matthews", "pearson"), "highest"),
}
"""Words in the names of measures, and which value is best."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The best evaluation so far."""

    step: int
    value: float
    since: int
    """Evaluations after it, none of which is better."""


def direction(name: str) -> Direction | None:
    """Which value of a measure is best, by the words of its name; None if they do not tell."""
    return next((WORDS[word] for word in re.split(r"[_/]", name) if word in WORDS), None)


def values(lines: Iterable[Mapping[str, Any]], name: str) -> dict[int, float]:
    """The values of a measure by step; NaN where they were not finite."""
    found = {line["step"]: line[name] for line in lines if name in line}
    return {step: math.nan if value is None else value for step, value in found.items()}


def best(by_step: Mapping[int, float], which: Direction) -> Best | None:
    """The best of some values by step, the first of equal ones; None if none is finite."""
    finite = {step: value for step, value in by_step.items() if math.isfinite(value)}
    if not finite:
        return None
    sign = 1 if which == "lowest" else -1
    step = min(finite, key=lambda step: (sign * finite[step], step))
    return Best(step, finite[step], since=sum(other > step for other in by_step))


def history(evaluation: Evaluation, lines: Iterable[Mapping[str, Any]], since: int) -> dict[int, float]:
    """The values of `evaluation.best` by step, of steps after `since`; empty if it is None."""
    name = f"{HELD_OUT}{evaluation.best}"
    return {} if evaluation.best is None else values((line for line in lines if line["step"] > since), name)


def best_of(evaluation: Evaluation, values: Mapping[int, float]) -> Best | None:
    """The best evaluation by these settings; None if there is none, or none is asked for."""
    which = evaluation.best and (evaluation.direction or direction(evaluation.best))
    return best(values, which) if which else None


def stops_early(evaluation: Evaluation, values: Mapping[int, float]) -> str | None:
    """Why a run with these evaluations stops early; None if it goes on."""
    best = best_of(evaluation, values)
    since = len(values) if best is None else best.since
    if evaluation.patience is None or since < evaluation.patience:
        return None
    place = "" if best is None else f" after step {best.step} ({logs.line({evaluation.best: best.value})})"
    return f"stopped early at step {max(values)}, since {since} evaluations{place} were not better"


def check(evaluation: Evaluation, known: Sequence[str]) -> None:
    """Raises ValueError if `evaluation.best` is none of an objective's measures, or nothing tells which value of it is
    best."""
    name = evaluation.best
    if name is None:
        return
    if name not in known:
        raise ValueError(
            f"evaluation.best is {name!r}, and the objective measures {', '.join(known)}.{trees.nearest(name, known)}"
        )
    if evaluation.direction is None and direction(name) is None:
        raise ValueError(f"evaluation.best is {name!r}: set evaluation.direction to lowest or highest, which is best")


def last_report(lines: Sequence[Mapping[str, Any]]) -> tuple[int, dict[str, float]] | None:
    """The step and the measures of the last evaluation; None if there was none."""
    for line in reversed(lines):
        found = {name.removeprefix(HELD_OUT): value for name, value in line.items() if name.startswith(HELD_OUT)}
        if found:
            return line["step"], {name: math.nan if value is None else value for name, value in found.items()}
    return None
