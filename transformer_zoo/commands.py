"""The commands behind train.py and eval.py: arguments in, exit code out."""

import contextlib
import dataclasses
import io
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from transformer_zoo import (
    folders,
    hugging_face,
    loop,
    messages,
    names,
    options,
    plots,
    runs,
    sharding,
    tables,
)
from transformer_zoo.checkpoints import orbax
from transformer_zoo.config import Data, Run, load_recipe
from transformer_zoo.data import sources
from transformer_zoo.data.documents import Document, text_in
from transformer_zoo.data.rows import cut_line
from transformer_zoo.evaluation import bleu, rouge, write
from transformer_zoo.evaluation.source import default_length, documents_of, evaluate, objective_of
from transformer_zoo.generation import published
from transformer_zoo.objectives import Seq2SeqLM
from transformer_zoo.objectives.metrics import ByClass
from transformer_zoo.pretrained import Bundle, from_pretrained

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, by the convention of shells."""
OPTIONS = {"num_beams": "beams"}
"""Settings -> options of eval.py, where the names differ."""
ERRORS = (ValueError, OSError, TypeError, ImportError, RuntimeError)

SCORES = {"bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
MOST_CLASSES = 30
"""The number of classes that are printed."""
SHOWN = 3
"""The number of generated texts that are printed."""
CHARACTERS = 300
"""The number of characters that are printed of each."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Train:
    aot: str | None = None
    """Do not train: compile the step for this TPU topology (v5e:4x4), with no TPU attached, and print whether it
    fits."""
    distributed: bool = False
    """This process is one of several, one on each host, all started with this command."""
    run: Annotated[Run, tyro.conf.arg(name="")]


def train(arguments: list[str]) -> int:
    """`train.py RECIPE [--setting value ...]`: 0 done, 1 an error, 2 a wrong argument, 3 no fit; saved and stopped: 130
    by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP."""
    orbax.silence()
    console = tables.console()
    if not arguments or arguments[0].startswith("-"):
        known = "\n".join(f"  {path}" for path in sorted(Path("configs").glob("*.py")))
        console.print(
            f"usage: train.py RECIPE [--setting value ...] [--aot TOPOLOGY]\n\nrecipes:\n{known}", markup=False
        )
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        recipe = load_recipe(arguments[0])
        if (wrong := options.unknown(arguments[1:], _options(_Train(run=recipe)), hugging_face.TRAIN)) is not None:
            return messages.fail(f"{wrong} All are listed by train.py {arguments[0]} --help", code=2)
        recipe = _of_one_length(recipe, arguments[1:])
        chosen = tyro.cli(
            _Train, default=_Train(run=recipe), args=arguments[1:], prog=f"train.py {arguments[0]}",
            description="", config=(tyro.conf.FlagConversionOff,),
        )  # fmt: skip
        if chosen.aot is not None:
            from transformer_zoo import fit

            return fit.main(chosen.run, chosen.aot)
        if chosen.distributed:
            sharding.join_processes()
        loop.train(chosen.run)
    except ERRORS as error:
        return messages.fail(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _of_one_length(recipe: Run, arguments: list[str]) -> Run:
    """The recipe without its own length where the arguments give one in the other unit: steps or epochs."""
    given = [argument[2:].replace("_", "-").partition("=")[0] for argument in arguments if argument.startswith("--")]
    units = [unit for unit in ("steps", "epochs") if f"training.{unit}" in given]
    if len(units) != 1 or getattr(recipe.training, units[0]) is not None:
        return recipe
    # The value is replaced by the one that is given.
    one = {"steps": recipe.optimizer.least_steps} if units == ["steps"] else {"epochs": 1.0}
    training = dataclasses.replace(recipe.training, **{"steps": None, "epochs": None} | one)
    return dataclasses.replace(recipe, training=training)


def _options(settings: Any) -> list[str]:
    """The options for the settings in a dataclass and in those that it holds, such as optimizer.peak-lr."""
    found: list[str] = []
    for field in dataclasses.fields(settings):
        name, value = field.name.replace("_", "-"), getattr(settings, field.name)
        inside = _options(value) if dataclasses.is_dataclass(value) else []
        found += [option if isinstance(settings, _Train) else f"{name}.{option}" for option in inside] or [name]
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Evaluate:
    model: tyro.conf.Positional[str]
    """A run's folder, or a published model: a hub id, a preset, a folder."""
    step: int | Literal["best"] | None = None
    """For a run: the step of the checkpoint, or the best by the run's evaluation.best. None: the latest."""
    source: str | None = None
    """Text to evaluate on, as in a recipe's data.source. None: the run's own."""
    split: str | None = None
    """Split of the source. None: of the run's own source the held-out split; of another one all of local files, or the
    validation split of a data set with splits of its own."""
    length: int | None = None
    """Tokens in a row. None: as in training, else the model's positions, at most 1024."""
    batch_size: int = 16
    """Rows at a time."""
    batches: int | None = None
    """Stop after this number of batches. None: the whole split."""
    objective: str | None = None
    """The objective to measure. None: the run's, else the one of the model's task."""
    set: tuple[str, ...] = ()
    """Settings of the objective, as NAME=VALUE: source=en target=fr "prefix=translate English to French: "."""
    dtype: str = "float32"
    """Dtype of the computation, for a published model."""
    quantize: Literal["int8", "int4", "nf4"] | None = None
    """Measure the model with its matrices in few bits. None: as they are."""
    write: int | Literal["all"] = 0
    """For an encoder-decoder: generate texts for the first N sources of the split, and score them by BLEU and ROUGE."""
    beams: int | None = None
    """With --write: the number of beams. None: as in the model's generation_config.json, else greedy."""
    max_new_tokens: int | None = None
    """With --write: the largest number of new tokens. None: the length of a target in training."""
    baseline: str | None = None
    """With --write: also score this field of the examples, as if it were generated. None: the source."""
    picture: Path | None = None
    """For a classifier: the file for a picture of the confusion matrix, or of precision and recall of each class where
    an example may have several. None: confusion.png or classes.png in the folder of a run, if it is measured on its own
    held-out split."""
    json: Path | None = None
    """Also write the result to this file, with the measures of each class, and all generated texts."""


def evaluate_command(arguments: list[str]) -> int:
    """`eval.py RUN_OR_MODEL [--source ...]`: prints a table."""
    if wrong := options.unknown(arguments, options.names_of(_Evaluate)):
        return messages.fail(wrong, code=2)
    chosen = tyro.cli(
        _Evaluate,
        args=arguments,
        prog="eval.py",
        description="Measures a model on a source: its objective's loss and more; BLEU and ROUGE of what it writes.",
    )
    try:
        return _evaluate(chosen)
    except ERRORS as error:
        return messages.fail(messages.by_options(error, chosen, OPTIONS))
    except KeyboardInterrupt:
        return INTERRUPTED


def _evaluate(chosen: _Evaluate) -> int:
    for option, file in (("--json", chosen.json), ("--picture", chosen.picture)):
        if file is not None:
            folders.check_file(file, option)
    run = runs.read(chosen.model) if names.is_run(chosen.model) else None
    bundle, objective = _load(chosen, run)
    bundle = bundle if chosen.quantize is None else bundle.quantize(chosen.quantize)
    objective = _with_settings(objective, chosen.set)
    data = run.data if run else Data(length=default_length(bundle))
    length = data.length if chosen.length is None else chosen.length
    source, documents = _documents(chosen, data, objective.input_fields)
    split = documents.split
    objective.check_documents(documents)
    objective, _ = objective.for_data(bundle.config, documents.classes)
    # Errors in the settings of --write are raised before anything is measured.
    to_write = _to_write(chosen, bundle, objective, documents)
    if chosen.beams is not None:
        sampling = published.build(bundle, {"num_beams": chosen.beams, "do_sample": False})
        bundle = dataclasses.replace(bundle, sampling=sampling)
    report = evaluate(
        bundle, source=documents, split=split, objective=objective, length=length, packing=data.packing,
        batch_size=chosen.batch_size, batches=chosen.batches,
    )  # fmt: skip
    make_rows = objective.rows(bundle.tokenizer, Data(length=length, packing=data.packing))
    cut = cut_line(make_rows, {split: documents}, bundle.config.max_length)
    step = runs.step_of(chosen.model, chosen.step) if run else None
    table = Table(title=f"{chosen.model}{'' if step is None else f', step {step}'} on {source}, {split}")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in report.items():
        unit = f" ({objective.loss_unit})" if name == "loss" else ""
        table.add_row(name.replace("_", " ") + unit, f"{value:,}" if isinstance(value, int) else f"{value:.4f}")
    console = tables.console()
    tables.show(console, table)
    if cut:
        console.print(cut, soft_wrap=True, highlight=False, markup=False)
    record = {"model": chosen.model, "step": step, "source": source, "split": split, "length": length, **report}
    if report.by_class is not None:
        record |= report.by_class.record()
        tables.show(console, _class_table(report.by_class))
        own = run is not None and (source, split) == (run.data.source, run.data.validation_split)
        name = plots.picture_of(report.by_class)
        picture = chosen.picture or (Path(chosen.model).expanduser() / name if own else None)
        if picture is not None and plots.classes(report.by_class, picture, f"{chosen.model} on {source}, {split}"):
            what = {plots.CONFUSION: "confusion matrix", plots.CLASSES: "precision and recall of each class"}[name]
            console.print(f"{what}: {picture}", markup=False, soft_wrap=True)
    if chosen.write:
        record["written"] = _written(chosen, bundle, objective, length, *to_write, console)
    if chosen.json is not None:
        chosen.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0


def _documents(chosen: _Evaluate, data: Data, inputs: Sequence[str] = ()) -> tuple[str, sources.Source]:
    """The source to measure on, by name and open: the one that is given, or else the run's."""
    return documents_of(data, chosen.source, chosen.split, inputs)


def _class_table(by_class: ByClass) -> Table:
    """The measures of each class; of the most frequent ones, if there are many."""
    measures = by_class.measures()
    shown = sorted(measures, key=lambda label: -measures[label]["support"])[:MOST_CLASSES]
    table = Table("class", title=None if len(shown) == len(measures) else f"the {len(shown)} most frequent classes")
    for name in ("precision", "recall", "f1", "support"):
        table.add_column(name, justify="right")
    for label in (label for label in measures if label in shown):
        *shares, support = measures[label].values()
        table.add_row(Text(label), *(f"{share:.4f}" for share in shares), f"{support:,}")
    return table


def _load(chosen: _Evaluate, run: Run | None) -> tuple[Bundle, Any]:
    """The model and the objective to measure; for another objective than the run's, the model is the run's result."""
    if run is not None and chosen.objective in (None, run.objective.name):
        return runs.load_run(chosen.model, chosen.step, whole=True), run.objective
    if run is None and chosen.step is not None:
        raise ValueError(
            f"--step {chosen.step} is for the checkpoints of a run, and {chosen.model} is none: leave it out"
        )
    found = runs.load_run(chosen.model, chosen.step) if run else from_pretrained(chosen.model, dtype=chosen.dtype)
    return found, objective_of(found, chosen.objective)


def _with_settings(objective: Any, settings: tuple[str, ...]) -> Any:
    """The objective with settings as `NAME=VALUE`, where a value is spelt as on the command line of train.py.

    Raises:
        ValueError: an unknown setting, or a value of the wrong type.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(objective)}
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in kinds:
            raise ValueError(
                f"--set {setting}: give NAME=VALUE, NAME being a setting of the objective {objective.name}: "
                f"{', '.join(kinds) or 'it has no settings'}"
            )
        values[name] = _value(kinds[name], text, setting)
    return dataclasses.replace(objective, **values)


def _value(kind: Any, text: str, setting: str) -> Any:
    if kind is str:
        return text  # tyro would drop spaces and refuse a leading dash
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return tyro.cli(kind, args=text.split(), add_help=False)
    except SystemExit:
        kind = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        raise ValueError(f"--set {setting}: the value is no {kind}") from None


def _to_write(
    chosen: _Evaluate, bundle: Bundle, objective: Any, documents: sources.Source
) -> tuple[list[Document], list[str], list[str]]:
    """The examples to generate texts for, their references, and their texts by the baseline.

    Raises:
        ValueError: an objective without sources and targets, a model that generates nothing, or a missing field.
    """
    if chosen.write == 0:
        for name in ("beams", "max_new_tokens", "baseline"):
            if getattr(chosen, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} needs --write, such as --write 200")
        return [], [], []
    if chosen.write != "all" and chosen.write < 0:
        raise ValueError(f"--write {chosen.write}: give a number of examples, or all")
    if not isinstance(objective, Seq2SeqLM):
        raise ValueError(
            f"--write: the objective {objective.name} has no source to read and no target to write; "
            f"--objective {Seq2SeqLM.name} has"
        )
    if bundle.model.task != objective.task:
        raise ValueError(f"--write: {chosen.model} is a model for {bundle.model.task}, which generates nothing")
    count = len(documents) if chosen.write == "all" else min(chosen.write, len(documents))
    examples = [documents[i] for i in range(count)]
    fields = (objective.target, chosen.baseline or objective.source)
    references, baselines = ([text_in(example, field) for example in examples] for field in fields)
    return examples, references, baselines


def _written(
    chosen: _Evaluate, bundle: Bundle, objective: Any, length: int,
    examples: list[Document], references: list[str], baselines: list[str], console: Console,
) -> dict[str, Any]:  # fmt: skip
    """Generates texts, prints their scores, those of the baseline and a few examples, and returns all of it."""
    with console.status(f"writing {len(examples)} texts"):
        texts = write(
            bundle, objective, examples, length=length, max_new_tokens=chosen.max_new_tokens,
            batch_size=chosen.batch_size,
        )  # fmt: skip
    baseline = chosen.baseline or objective.source
    scores, baseline_scores = (
        {"bleu": bleu(hypotheses, references), **rouge(hypotheses, references)} for hypotheses in (texts, baselines)
    )
    if chosen.write not in ("all", len(texts)):
        console.print(f"--write {chosen.write}: the split has only {len(texts)} examples.")
    table = Table("measure", title=f"{len(texts)} texts written")
    for column in ("model", f"baseline: {baseline}"):
        table.add_column(column, justify="right")
    for name, title in SCORES.items():
        table.add_row(title, f"{scores[name]:.2f}", f"{baseline_scores[name]:.2f}")
    tables.show(console, table)
    found = [
        {"source": text_in(example, objective.source), "reference": reference, "written": text}
        for example, reference, text in zip(examples, references, texts)
    ]
    table = Table(show_header=False)
    for example in found[:SHOWN]:
        for name, text in example.items():
            text = " ".join(text.split())
            text = text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]} ..."
            table.add_row(name, Text(text), end_section=name == "written")
    tables.show(console, table)
    return {"texts": len(found), "model": scores, "baseline": {"field": baseline, **baseline_scores}, "examples": found}
