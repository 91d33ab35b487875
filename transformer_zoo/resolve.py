"""Settles everything about a run before anything is computed: `resolve(run)`."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from transformer_zoo import folders, measures, names, registry, runs, sharding, training
from transformer_zoo.checkpoints import config_map
from transformer_zoo.checkpoints.orbax import steps
from transformer_zoo.config import Data, Run
from transformer_zoo.data import epochs, pipeline
from transformer_zoo.data.documents import PIECE
from transformer_zoo.data.fingerprints import difference, fingerprint
from transformer_zoo.data.labels import Tell
from transformer_zoo.data.rows import RowMaker, cut_line
from transformer_zoo.data.sources import Source
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.evaluation.source import source_of
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.nn.tasks import TASKS, same_scores
from transformer_zoo.pretrained import Bundle, load_tokenizer

# Tokenizers that were trained here, by corpus: a second run on the same corpus reuses its tokenizer.
CACHE = folders.CACHE / "tokenizers"

OpenSplit = Callable[[str], Source]
"""Opens `train` or `validation`: the documents to train on, or to evaluate on."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A run, and everything that training needs."""

    run: Run
    """The settings, with the architecture of the first weights and what the data add, such as names of classes."""
    step: int | None
    """The step of the latest checkpoint in the run's folder, where the run goes on."""
    program: training.Program
    bundle: Bundle | None
    """The first weights. None: the latest checkpoint, or fresh ones."""
    tokenizer: Tokenizer
    make_rows: RowMaker
    train_source: Source
    validation_source: Source | None
    """None: the run has no evaluation."""
    steps: int
    """Of the whole run, also where the settings count epochs."""
    facts: dict[str, Any]
    """What run.json records about the run besides its settings: `runs.facts`."""
    notes: list[str]
    """Settings that changed since the run in this folder began, a line each."""
    labels: str = ""
    """The labels of the data, in a line. Empty: there are none, or they were not read, since the run goes on."""


def resolve(run: Run, tell: Tell = lambda line: None) -> Resolved:
    """Finds everything that a run needs, and everything that is wrong with it. Opens each split of its source once.

    Args:
        tell: shows a line to the user, such as before something that takes long.

    Raises:
        ValueError: settings, data or weights that contradict one another or the run that the folder holds.
        FileNotFoundError, PermissionError, ConnectionError: data, a tokenizer or weights that are not available.
    """
    given = runs.digest(run)
    run, kept = _held_out_as_before(run)
    open_split = functools.cache(functools.partial(source_of, run.data, inputs=run.objective.input_fields))
    opened = {split: open_split(split) for split in _splits(run)}
    if (fault := _share_without_use(run.data, opened["train"])) is not None:
        warnings.warn(fault, stacklevel=2)
    for documents in opened.values():
        run.objective.check_documents(documents)
    if kept and run.data.validation_source is None and not opened["train"].own_splits:
        tell(f"{run.directory} began with data.held_out_by=rows, the rule of older versions, and keeps that split")
    run, step, bundle, notes, labels = _settle(run, open_split, tell)
    program = training.prepare(run)
    measures.check(run.evaluation, program.measures)
    tokenizer = _tokenizer(run, step, bundle, open_split)
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {run.model.vocab_size}: "
            "set model.vocab-size to at least that"
        )
    if step is None and bundle is None and (fault := _other_end(run, tokenizer)) is not None:
        warnings.warn(fault, stacklevel=2)
    make_rows = run.objective.rows(tokenizer, run.data)
    if step is None and (line := cut_line(make_rows, opened, run.model.max_length)):
        tell(line)
    train, validation = opened["train"], opened.get("validation")
    data = {"train": fingerprint(train), "validation": None if validation is None else fingerprint(validation)}
    if validation is not None and data["train"]["contents"] == data["validation"]["contents"]:
        remedy = "leave data.validation_source out, and a share of them is held out"
        if run.data.validation_source is None:
            remedy = "name another split by data.validation_split"
        warnings.warn(
            f"the documents to evaluate on ({run.data.validation_source or run.data.source}) are those to train on, "
            f"and measures on them say nothing about others: {remedy}",
            stacklevel=2,
        )
    since = 0
    if step is not None:
        changes = _changed_data(run, data)
        if changes or not runs.measures_the_same(runs.read(run.directory), run):
            since = step
            changes.append(
                f"what is measured: evaluations up to step {step} cannot be compared with later ones, and do not count "
                "for evaluation.best and evaluation.patience"
            )
        else:
            since = runs.comparable_since(runs.facts(run.directory))
        notes += changes
    if (total := run.training.steps) is None:
        settings = run.training
        rows = pipeline.Pipeline(
            train, make_rows, batch_size=settings.batch_size, seed=settings.seed, workers=run.data.workers
        )
        total = epochs.steps_of(settings.epochs, rows, settings.batch_size, CACHE.parent / "rows", data["train"], tell)
        run.optimizer.check_steps(total)
        program = training.prepare(run, steps=total)
    return Resolved(
        run=run, step=step, program=program, bundle=bundle, tokenizer=tokenizer, make_rows=make_rows,
        train_source=train, validation_source=validation, steps=total,
        facts={"given": given, "steps": total, "data": data, "comparable_since": since}, notes=notes, labels=labels,
    )  # fmt: skip


def _share_without_use(data: Data, train: Source) -> str | None:
    """Why the share to hold out that is set has no effect; None if it has one, or none is set."""
    if data.validation_share == Data.validation_share:
        return None
    if data.validation_source is not None:
        why = f"{data.validation_source} is held out"
    elif train.own_splits:
        why = (
            f"{data.source} has splits of its own, which data.train_split and data.validation_split name (of TFDS also "
            "parts such as train[:5%])"
        )
    else:
        return None
    return f"data.validation_share={data.validation_share} is not used: {why}"


def _other_end(run: Run, tokenizer: Tokenizer) -> str | None:
    """What is wrong with the end token of a fresh model that is to generate. None: nothing."""
    ends = TokenIds.of_config(run.model).eos
    if run.objective.task != registry.generating_task(run.model) or tokenizer.eos_id in (None, *ends):
        return None
    return (
        f"a text ends with token {tokenizer.eos_id} of the tokenizer, and what the model generates with "
        f"{', '.join(map(str, ends)) or 'none'}: set model.eos_id to {tokenizer.eos_id}"
    )


def _splits(run: Run) -> tuple[str, ...]:
    """What a run reads: documents to train on, and to evaluate on unless its evaluation is off."""
    return ("train",) if run.evaluation.every is None else ("train", "validation")


def _held_out_as_before(run: Run) -> tuple[Run, bool]:
    """The run with the split that it began with, if an older version began it, which divided whole rows; and whether
    that is another one."""
    before, _ = _found(folders.folder(run.directory))
    if before is None or before.data.held_out_by == run.data.held_out_by or before.data.held_out_by != "rows":
        return run, False
    return dataclasses.replace(run, data=dataclasses.replace(run.data, held_out_by="rows")), True


def _changed_data(run: Run, data: dict[str, Any]) -> list[str]:
    """Notes about held-out documents that are no longer those that the run began with.

    Raises:
        ValueError: the documents to train on have changed: the run's position in them has no meaning.
    """
    before = runs.facts(run.directory).get("data") or {}  # older versions did not record it
    changed = {
        split: difference(before[split], data[split]) for split in data if before.get(split) and data[split] is not None
    }
    if change := changed.get("train"):
        raise ValueError(
            f"the documents to train on, {run.data.source}, have changed since the run in {run.directory} began: "
            f"{change}. Put them back, or begin another run with what this one has learned: "
            f"--init-from {run.directory} --directory ANOTHER"
        )
    if change := changed.get("validation"):
        return [f"held-out documents: {change}"]
    return []


def load_weights(run: Run, name: str, **kwargs: Any) -> Bundle:
    """Other weights, by `runs.load`, in this run's precision and on its devices."""
    mesh = sharding.make_mesh(**dataclasses.asdict(run.mesh))
    defaults = {"dtype": run.compute.dtype, "param_dtype": run.compute.param_dtype, "seed": run.training.seed}
    return runs.load(name, mesh=mesh, **defaults | kwargs)


def _settle(
    run: Run, open_split: OpenSplit, tell: Tell = lambda line: None
) -> tuple[Run, int | None, Bundle | None, list[str], str]:
    """The completed run, the step of its latest checkpoint, the weights that it begins with, the settings that changed
    since it began, and its labels."""
    before, step = _found(folders.folder(run.directory))
    if before is not None and run.init_from is not None and run.init_from == before.init_from:
        run = dataclasses.replace(run, model=before.model)  # of the weights that it began with
    labels = ""
    if before is not None:
        run = dataclasses.replace(run, objective=_as_it_began(run.objective, before.objective))
        if run.lora.rank is not None and run.lora.whole is None:
            run = dataclasses.replace(run, lora=dataclasses.replace(run.lora, whole=before.lora.whole))
    if before is None or before.data != run.data:
        splits = {split: open_split(split) for split in _splits(run)}
        head = _head(run) if before is None else None
        objective, labels = run.objective.with_labels(run.model, splits, head, tell)
        run = dataclasses.replace(run, objective=objective)
    run = _for_data(run, open_split)
    notes = [] if before is None else runs.check_same(before, run)
    if run.init_from is None or step is not None:
        return run, step, None, notes, labels
    names_of_classes = getattr(run.model, "labels", None)
    bundle = load_weights(run, run.init_from, task=run.objective.task, labels=names_of_classes)
    if run.lora.rank is not None and run.lora.whole is None:
        fresh = tuple(map(re.escape, bundle.fresh))
        run = dataclasses.replace(run, lora=dataclasses.replace(run.lora, whole=fresh))
    return _for_data(dataclasses.replace(run, model=bundle.config), open_split), None, bundle, notes, labels


def _as_it_began(objective: Any, before: Any) -> Any:
    """The objective of a run that goes on, with what its first start found in the data."""
    if type(objective) is not type(before):
        return objective
    asked = [name for name, value in objective.from_data.items() if getattr(objective, name) == value]
    return dataclasses.replace(objective, **{name: getattr(before, name) for name in asked})


def _head(run: Run) -> Any:
    """The configuration of the weights that a run begins with, if their head scores the labels of its task."""
    task = run.objective.task
    if run.init_from is None or TASKS[task].scores != "labels":
        return None
    is_run = names.is_run(run.init_from)
    described = names.describe(run.init_from, published=not is_run)
    trained = runs.read(run.init_from).objective.task if is_run else described.task
    return described.config if trained is not None and same_scores(trained, task) else None


def _found(directory: epath.Path) -> tuple[Run | None, int | None]:
    """The run that a folder holds, and the step of its latest checkpoint. A run that never saved binds nothing: its
    settings may be corrected.

    Raises:
        ValueError: checkpoints of an unknown run; or no run, and files of a model, or that one would replace.
    """
    step = max(steps(directory / "checkpoints"), default=None)
    if step is None:
        held = [name for name in (*runs.REPLACED, config_map.CONFIG) if (directory / name).exists()]
        if held and not names.is_run(directory):
            raise ValueError(
                f"{directory} is no folder of a run, and holds {', '.join(held)}, which must not mix with its files: "
                "give this run another --directory"
            )
        return None, None
    if not names.is_run(directory):
        raise ValueError(
            f"{directory} holds checkpoints but no run.json to describe them: give this run another "
            "--directory, or put run.json back"
        )
    return runs.read(directory), step


def _for_data(run: Run, open_split: OpenSplit) -> Run:
    """The run, completed from its data: names of classes, for example."""
    classes = lambda field: open_split("train").classes(field)
    objective, model = run.objective.for_data(run.model, classes)
    return dataclasses.replace(run, objective=objective, model=model)


def _tokenizer(run: Run, step: int | None, bundle: Bundle | None, open_split: OpenSplit) -> Tokenizer:
    """The run's own tokenizer, once it has saved a step, or else that in its settings, in its first weights, or trained
    on its training split."""
    own, vocabulary = folders.folder(run.directory) / "tokenizer", run.vocabulary
    if step is not None and own.is_dir():
        with folders.local(own) as folder:
            return Tokenizer.load(folder)
    file = None if vocabulary.chat_template is None else Path(vocabulary.chat_template).expanduser()
    template = None if file is None else _template(file)
    if vocabulary.path is not None:
        found = load_tokenizer(vocabulary.path)
    elif bundle is not None and bundle.tokenizer is not None:
        found = bundle.tokenizer
    else:
        documents = open_split("train").cut(PIECE)
        texts = (text for document in documents for text in run.objective.texts_of(document))
        found = Tokenizer.train(texts, vocabulary.size, CACHE, kind=vocabulary.kind, lower_case=vocabulary.lower_case)
    return found if template is None else found.with_chat_template(template, str(file))


def _template(file: Path) -> str:
    """The chat template in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8.
    """
    if not file.is_file():
        raise FileNotFoundError(f"vocabulary.chat_template: there is no file {str(file)!r}")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"vocabulary.chat_template: {file} is not text in UTF-8") from None
