"""Whether the run in a folder has ended, and how."""

import dataclasses

from transformer_zoo import folders, logs, measures, names, runs
from transformer_zoo.checkpoints.orbax import steps
from transformer_zoo.config import Run


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended."""

    message: str
    report: dict[str, float]
    """The last evaluation on held-out documents."""


def as_given(run: Run) -> Ended | None:
    """How the run with exactly these settings ended, from what its folder records: no data are read. None: there is no
    such run, or it goes on."""
    if not names.is_run(run.directory):
        return None
    found = runs.facts(run.directory)
    if found.get("given") != runs.digest(run) or type(found.get("steps")) is not int:
        return None
    return of(run, found["steps"], runs.comparable_since(found))


def of(run: Run, total: int, since: int = 0) -> Ended | None:
    """How the run in the folder ended, if it did and has its last evaluation.

    Args:
        total: steps of the whole run.
        since: as `runs.comparable_since`.
    """
    step = max(steps(folders.folder(run.directory) / "checkpoints"), default=0)
    lines = [line for line in runs.lines(run.directory) if line["step"] <= step]
    last, report = measures.last_report(lines) or (0, {})
    at_the_end = f"its last evaluation: {logs.line(report)}" if report else "it was not evaluated"
    if step > total or (step == total and (run.evaluation.every is None or last == step)):
        more = "for more, raise training.steps or training.epochs, or give another --directory"
        return Ended(f"{run.directory} is finished, with step {step} of {total}; {at_the_end} ({more})", report)
    early = measures.stops_early(run.evaluation, measures.history(run.evaluation, lines, since))
    if step and last == step and early is not None:
        more = "to go on, raise evaluation.patience"
        return Ended(f"{run.directory} is finished: {early}; {at_the_end} ({more})", report)
    return None
