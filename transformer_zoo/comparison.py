"""Several runs side by side, from their run.json and metrics.jsonl: `python -m transformer_zoo compare`."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from transformer_zoo import json_files, logs, measures, names, plots, runs, tables, trees

NOT_COMPARED = ("directory",)
KINDS = {"model": "model.family", "objective": "objective.name"}
"""Parts of the settings -> what says which settings the part has."""
MOST_SETTINGS = 4
"""Settings that differ of which the table has a column; if there are more, they are listed below it."""
LONGEST = 60
"""Characters of a setting's value that are shown."""


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
    objective: Any
    held_out: Any
    """The fingerprint of the held-out documents; None if run.json has none."""
    since: int
    """The step after which its evaluations can be compared with one another."""

    @classmethod
    def read(cls, directory: str) -> "Ran":
        """From the folder.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: a file in it cannot be read, or its settings not by this version.
        """
        settings = trees.flatten(names.run_settings(directory))
        settings = {path.replace("/", "."): value for path, value in settings.items()}
        facts = runs.facts(directory)
        steps, held_out = facts.get("steps", settings.get("training.steps")), facts.get("data", {}).get("validation")
        objective, since = runs.read(directory).objective, runs.comparable_since(facts)
        return cls(directory, settings, steps, runs.lines(directory), objective, held_out, since)

    def kind(self, measure: str) -> str:
        """Values of a measure compare only between runs of one kind: of one objective, and losses of one unit."""
        return self.objective.name + (f", loss in {self.objective.loss_unit}" if measure == "loss" else "")

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
    """Prints a table of runs, the best first, and writes a picture of their curves. Several objectives, or several
    units of the losses that are compared, have a table and axes each, since their values do not compare.

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
    groups: dict[str, list[Ran]] = {}
    for run in compared:
        groups.setdefault(run.kind(title), []).append(run)
    if len(groups) > 1:
        others = _others(compared) if len({run.objective.name for run in compared}) == 1 else ()
        remedy = f" (--metric {others[0]} compares them all)" if others else ""
        _say(console, f"the {title} of these runs is of {len(groups)} kinds, which do not compare{remedy}")
    pictures = {}
    for kind, group in groups.items():
        heading = kind if len(groups) > 1 else ""
        curves = _compare(group, column, which, heading, console)
        if curves:
            unit = f" ({group[0].objective.loss_unit})" if title == "loss" else ""
            pictures[heading] = f"{title}{unit}{'' if column == title else ', held out'}", curves
    if pictures:
        plots.curves(pictures, output)
        _say(console, f"{output} shows their {title} by step")


def _compare(
    group: Sequence[Ran], column: str, which: measures.Direction | None, heading: str, console: Console
) -> dict[str, dict[int, float]]:
    """Prints a table of runs that compare, the best first, and the settings in which they differ; returns the values of
    the measure by step, by the name of the run."""
    title = column.removeprefix(logs.HELD_OUT)
    comparable = lambda run: [line for line in run.lines if line["step"] > run.since]
    found = {run.name: measures.values(comparable(run), column) for run in group}
    best = {run.name: which and measures.best(found[run.name], which) for run in group}
    group = sorted(group, key=lambda run: _rank(best[run.name], which))
    differ = differences([run.settings for run in group])

    def table(settings: bool) -> Table:
        made = Table(title=heading or None)
        made.add_column("run", overflow="fold")
        if settings:
            made.add_column("settings that differ", overflow="fold")
        for name in ("steps", "training\nloss", title, f"best\n{title}", "at step", "time"):
            made.add_column(name, justify="right", no_wrap=True)  # in a narrow terminal, names are cut and no number
        for run in group:
            values, losses, top = found[run.name], measures.values(run.lines, "loss"), best[run.name]
            made.add_row(
                Text(run.name),
                *([Text(_settings(run.settings, differ))] if settings else []),
                f"{run.steps:,}" if run.steps == run.asked else f"{run.steps:,} of {run.asked or '?'}",
                _number(losses[max(losses)]) if losses else "-",
                _number(values[max(values)]) if values else "-",
                _number(top.value) if top else "-",
                f"{top.step:,}" if top else "-",
                _time(run.seconds),
            )
        return made

    inside = 0 < len(differ) <= MOST_SETTINGS and tables.fits(console, table(settings=True))
    tables.show(console, table(settings=inside))
    if differ and not inside:
        _say(console, "settings that differ:")
        for name, full in _short(differ).items():
            values = _by_value({run.name: _text(x) for run in group if (x := run.settings.get(full)) is not None})
            text = ", ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            _say(console, f"  {name}: {text}")
    if column.startswith(logs.HELD_OUT):
        documents = {run.name: json.dumps(run.held_out) for run in group if run.held_out is not None}
        if len(set(documents.values())) > 1:
            same = "; ".join(", ".join(names) for names in _by_value(documents).values())
            _say(console, f"these runs were evaluated on different documents, whose values do not compare: {same}")
    return {run.name: found[run.name] for run in group if found[run.name]}


def differences(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The names of the settings in which some runs differ. A setting that a run lacks is None. Of models of several
    families, and of several objectives, only the names differ: each has settings of its own. Labels, which the model
    has from the objective, are named once."""
    known = dict.fromkeys(name for one in settings for name in one if name not in NOT_COMPARED)
    same = lambda name: all(one.get(name) == settings[0].get(name) for one in settings)  # also 5 and 5.0
    others = tuple(f"{part}." for part, name in KINDS.items() if not same(name))
    copied = lambda name: (
        name.startswith("model.")
        and all(one.get(name) == one.get(name.replace("model.", "objective.", 1)) for one in settings)
    )
    differ = [name for name in known if not same(name) and not copied(name)]
    return [name for name in differ if name in KINDS.values() or not name.startswith(others)]


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


def _others(compared: Sequence[Ran]) -> list[str]:
    """The held-out measures besides the loss that all of these runs have."""
    known = [{name for line in run.lines for name in line if name.startswith(logs.HELD_OUT)} for run in compared]
    common = sorted(name.removeprefix(logs.HELD_OUT) for name in set.intersection(*known))
    return [name for name in common if name != "loss" and measures.direction(name)]


def _rank(best: measures.Best | None, which: str | None) -> tuple[bool, float]:
    return best is None, 0.0 if best is None else best.value if which == "lowest" else -best.value


def _short(which: Sequence[str]) -> dict[str, str]:
    """Names of settings without their part, where that is enough -> the names."""
    last = [name.rpartition(".")[2] for name in which]
    return {name if last.count(end) > 1 else end: name for name, end in zip(which, last)}


def _settings(settings: Mapping[str, Any], which: Sequence[str]) -> str:
    """Some settings, a line each, without those that are None."""
    return "\n".join(
        f"{name} {_text(x)}" for name, full in _short(which).items() if (x := settings.get(full)) is not None
    )


def _text(value: Any) -> str:
    """A setting's value as on the command line; long ones are cut."""
    if isinstance(value, list):
        value = f"({', '.join(map(_text, value))})"
    return json_files.excerpt(f"{value:g}" if isinstance(value, float) else value, LONGEST)


def _by_value(by_run: Mapping[str, str]) -> dict[str, list[str]]:
    """The names of the runs that have a value, for each value."""
    found: dict[str, list[str]] = {}
    for run, value in by_run.items():
        found.setdefault(value, []).append(run)
    return found


def _say(console: Console, text: str) -> None:
    """A line, as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
