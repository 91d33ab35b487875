"""The best evaluation of a run by one of its measures, from the lines of metrics.jsonl."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

Direction = Literal["lowest", "highest"]

HELD_OUT = "validation/"
"""Before the names of measures on held-out documents."""

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
    """The values of a measure by step, without those that were not finite."""
    return {line["step"]: line[name] for line in lines if isinstance(line.get(name), int | float)}


def best(by_step: Mapping[int, float], which: Direction) -> Best | None:
    """The best of some values by step, the first of equal ones; None if there is none."""
    if not by_step:
        return None
    sign = 1 if which == "lowest" else -1
    step = min(by_step, key=lambda step: (sign * by_step[step], step))
    return Best(step, by_step[step], since=sum(other > step for other in by_step))


def last_report(lines: Sequence[Mapping[str, Any]]) -> tuple[int, dict[str, float]] | None:
    """The step and the measures of the last evaluation; None if there was none."""
    for line in reversed(lines):
        found = {name.removeprefix(HELD_OUT): value for name, value in line.items() if name.startswith(HELD_OUT)}
        if found:
            return line["step"], {name: float("nan") if value is None else value for name, value in found.items()}
    return None
