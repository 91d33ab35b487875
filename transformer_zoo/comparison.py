"""Several runs side by side, from their run.json and metrics.jsonl: `python -m transformer_zoo compare`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from transformer_zoo import logs, measures, names, plots, runs, trees

NOT_COMPARED = ("directory",)
KINDS = {"model": "model.family", "objective": "objective.name"}
"""Parts of the settings -> what says which settings the part has."""


@dataclasses.dataclass(frozen=True)
class Ran:
    """What a run's folder records."""

    name: str
    settings: dict[str, Any]
    """By their dotted names."""
    asked: int | None
    """Steps that the run was to take."""
    lines: list[dict[str, Any]]
    """Of metrics.jsonl."""
    since: int
    """The step after which its evaluations can be compared with one another."""

    @classmethod
    def read(cls, directory: str) -> "Ran":
        """From the folder.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: a file in it cannot be read.
        """
        settings = trees.flatten(names.run_settings(directory))
        settings = {path.replace("/", "."): value for path, value in settings.items()}
        facts = runs.facts(directory)
        steps = facts.get("steps", settings.get("training.steps"))
        return cls(directory, settings, steps, runs.lines(directory), runs.comparable_since(facts))

    @property
    def steps(self) -> int:
        """Steps that it has taken, as far as the log tells."""
        return max((line["step"] for line in self.lines), default=0)

    @property
    def seconds(self) -> float:
        """Of its steps, without evaluation, checkpoints and start."""
        total, before = 0.0, 0
        for step, seconds in measures.values(self.lines, "seconds_per_step").items():
            total, before = total + seconds * (step - before), step
        return total


def compare(
    directories: Sequence[str], metric: str | None, output: Path, console: Console, which: measures.Direction | None
) -> None:
    """Prints a table of runs, the best first, and writes a picture of their curves.

    Args:
        metric: a measure on held-out documents, or of training. None: that of the runs' evaluation.best if it is the
            same in all, or else the loss.
        which: whether its lowest or its highest value is best. None: as its name tells.

    Raises:
        FileNotFoundError: a folder that holds no run.
        ValueError: a file that cannot be read, a folder given twice, or a measure that no run has.
    """
    if twice := next((name for i, name in enumerate(directories) if name in directories[:i]), None):
        raise ValueError(f"{twice} is given twice")
    compared = [Ran.read(directory) for directory in directories]
    column = _column(compared, metric)
    title, which = column.removeprefix(logs.HELD_OUT), which or measures.direction(column)
    found = [measures.values([line for line in run.lines if line["step"] > run.since], column) for run in compared]
    best = [which and measures.best(values, which) for values in found]
    order = sorted(range(len(compared)), key=lambda i: _rank(best[i], which))

    differ = differences([run.settings for run in compared])
    table = Table()
    table.add_column("run", overflow="fold")
    if differ:
        table.add_column("settings that differ", overflow="fold")
    for heading in ("steps", "training\nloss", title, f"best\n{title}", "at step", "time"):
        table.add_column(heading, justify="right", no_wrap=True)  # a terminal too narrow narrows the texts, no number
    for i in order:
        run, values = compared[i], found[i]
        losses = measures.values(run.lines, "loss")
        row = [
            f"{run.steps:,}" if run.steps == run.asked else f"{run.steps:,} of {run.asked or '?'}",
            _number(losses[max(losses)]) if losses else "-",
            _number(values[max(values)]) if values else "-",
            _number(best[i].value) if best[i] else "-",
            f"{best[i].step:,}" if best[i] else "-",
            _time(run.seconds),
        ]
        table.add_row(Text(run.name), *([Text(_settings(run.settings, differ))] if differ else []), *row)
    console.print(table)
    curves = {compared[i].name: found[i] for i in order if found[i]}
    if curves:
        plots.curves(curves, output, title if column == title else f"{title}, held out")
        console.print(f"{output} shows their {title} by step", markup=False, highlight=False, soft_wrap=True)


def differences(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the settings in which some runs differ. A setting that a run lacks is None. Of models of several
    families, and of several objectives, only the names differ: each has settings of its own."""
    known = dict.fromkeys(name for one in settings for name in one if name not in NOT_COMPARED)
    same = lambda name: len({json.dumps(one.get(name), sort_keys=True) for one in settings}) == 1
    others = tuple(f"{part}." for part, name in KINDS.items() if not same(name))
    return [name for name in known if not same(name) and (name in KINDS.values() or not name.startswith(others))]


def _column(compared: Sequence[Ran], metric: str | None) -> str:
    """The name in metrics.jsonl of the measure to compare by."""
    known = list(dict.fromkeys(name for run in compared for line in run.lines for name in line if name != "step"))
    if metric is None:
        chosen = {run.settings.get("evaluation.best") for run in compared}
        metric = (chosen.pop() if len(chosen) == 1 else None) or "loss"
        if not known:  # no run has got so far
            return logs.HELD_OUT + metric
    for name in (logs.HELD_OUT + metric, metric):
        if name in known:
            return name
    measured = dict.fromkeys(name.removeprefix(logs.HELD_OUT) for name in known)
    raise ValueError(
        f"none of the runs has a measure {metric!r}: they have {', '.join(measured) or 'none yet'}."
        f"{trees.nearest(metric, measured)}"
    )


def _rank(best: measures.Best | None, which: str | None) -> tuple[bool, float]:
    return best is None, 0.0 if best is None else best.value if which == "lowest" else -best.value


def _settings(settings: Mapping[str, Any], which: Sequence[str]) -> str:
    """Some settings, a line each: names without their part, where that is enough, and values."""
    last = [name.rpartition(".")[2] for name in which]
    short = [name if last.count(end) > 1 else end for name, end in zip(which, last)]
    text = lambda value: value if isinstance(value, str) else json.dumps(value)
    return "\n".join(f"{name} {text(settings.get(full))}" for name, full in zip(short, which))


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
