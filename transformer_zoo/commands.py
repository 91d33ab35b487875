"""The commands behind train.py and eval.py: arguments in, exit code out."""

import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from transformer_zoo import loop, runs
from transformer_zoo.config import Data, Run, load_recipe
from transformer_zoo.data import pipeline, sources
from transformer_zoo.evaluation import evaluate
from transformer_zoo.objectives import OBJECTIVES
from transformer_zoo.pretrained import Bundle, from_pretrained

ERRORS = (ValueError, OSError, TypeError, ImportError, RuntimeError)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Train:
    aot: str | None = None
    """Do not train: compile the step for this TPU topology (v5e:4x4), with no TPU attached, and say whether it fits."""
    run: Annotated[Run, tyro.conf.arg(name="")]


def train(arguments: list[str]) -> int:
    """`train.py RECIPE [--setting value ...]`: 0 done, 1 an error, 2 a wrong argument, 3 it does not fit."""
    console = Console()
    if not arguments or arguments[0].startswith("-"):
        known = "\n".join(f"  {path}" for path in sorted(Path("configs").glob("*.py")))
        console.print(
            f"usage: train.py RECIPE [--setting value ...] [--aot TOPOLOGY]\n\nrecipes:\n{known}", markup=False
        )
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        recipe = load_recipe(arguments[0])
        chosen = tyro.cli(
            _Train, default=_Train(run=recipe), args=arguments[1:], prog=f"train.py {arguments[0]}",
            description="", config=(tyro.conf.FlagConversionOff,),
        )  # fmt: skip
        if chosen.aot is not None:
            from transformer_zoo import fit

            return fit.main(chosen.run, chosen.aot)
        loop.train(chosen.run, console)
    except ERRORS as error:
        return fail(error)
    return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evaluate:
    model: tyro.conf.Positional[str]
    """A run's folder, or a published model: a hub id, a preset, a folder."""
    step: int | None = None
    """Of a run: the checkpoint of this step. None: the latest."""
    source: str | None = None
    """Text to evaluate on, as in a recipe's data.source. None: what the run was trained on."""
    split: str | None = None
    """Split of the source. None: what the run held out, else validation."""
    length: int | None = None
    """Tokens in a row. None: as in training, else what the model has positions for, at most 1024."""
    batch_size: int = 16
    """Rows at a time."""
    batches: int | None = None
    """Only so many of them. None: the whole split."""
    objective: str | None = None
    """What is measured. None: what the run was trained for, else the model's task."""
    dtype: str = "float32"
    """Of the computation, for a published model."""
    json: Path | None = None
    """Write the result here as well."""


def evaluate_command(arguments: list[str]) -> int:
    """`eval.py RUN_OR_MODEL [--source ...]`: prints a table."""
    chosen = tyro.cli(
        _Evaluate, args=arguments, prog="eval.py", description="What a model's objective measures on a text: loss, ..."
    )
    try:
        return _evaluate(chosen)
    except ERRORS as error:
        return fail(error)


def _evaluate(chosen: _Evaluate) -> int:
    run = runs.read(chosen.model) if (Path(chosen.model) / "run.json").is_file() else None
    bundle, objective = _load(chosen, run)
    data = run.data if run else Data(length=min(1024, bundle.config.max_length or 1024))
    data = dataclasses.replace(data, length=chosen.length or data.length)
    if bundle.tokenizer is None:
        raise ValueError(f"{chosen.model} has no tokenizer: text cannot be read without one")
    source, split = chosen.source or data.source, chosen.split or data.validation_split
    documents = sources.source(source, split)
    objective, _ = objective.for_data(bundle.config, documents.classes)
    rows = pipeline.Pipeline(
        documents, objective.rows(bundle.tokenizer, data), batch_size=chosen.batch_size,
        shuffle=False, epochs=1,
    )  # fmt: skip
    report = evaluate(bundle.model, objective, bundle.params, itertools.islice(rows, chosen.batches))
    table = Table(title=f"{chosen.model} on {source}, {split}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in report.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    Console().print(table)
    if chosen.json is not None:
        record = {"model": chosen.model, "source": source, "split": split, "length": data.length, **report}
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _load(chosen: _Evaluate, run: Run | None) -> tuple[Bundle, Any]:
    """The model and what is measured of it: what a run was trained for, or another objective of its result."""
    if run is not None and chosen.objective in (None, run.objective.name):
        return runs.load_run(chosen.model, chosen.step, whole=True), run.objective
    found = runs.load_run(chosen.model, chosen.step) if run else from_pretrained(chosen.model, dtype=chosen.dtype)
    name = chosen.objective or found.model.task
    if name not in OBJECTIVES:
        raise ValueError(f"there is no objective {name!r} to measure: choose one of {', '.join(OBJECTIVES)}")
    return found, OBJECTIVES[name]()


def fail(error: BaseException) -> int:
    """One message on stderr, for what a user can set right."""
    print(f"error: {error}", file=sys.stderr)
    return 1
