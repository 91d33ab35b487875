"""Settles everything about a run before anything is computed: `resolve(run)`."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformer_zoo import names, runs, sharding, training
from transformer_zoo.checkpoints.orbax import steps
from transformer_zoo.config import Run
from transformer_zoo.data import sources
from transformer_zoo.data.rows import RowMaker
from transformer_zoo.data.sources import Source
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.pretrained import Bundle, load_tokenizer

# Tokenizers that were trained here, by corpus: a second run on the same corpus reuses its tokenizer.
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "transformer_zoo", "tokenizers")

OpenSplit = Callable[[str], Source]
"""Opens a split of the run's source, each split once."""


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
    validation_source: Source
    notes: list[str]
    """Settings that changed since the run in this folder began, a line each."""


def resolve(run: Run) -> Resolved:
    """Finds everything that a run needs, and everything that is wrong with it. Opens each split of its source once.

    Raises:
        ValueError: settings, data or weights that contradict one another or the run that the folder holds.
        FileNotFoundError, PermissionError, ConnectionError: data, a tokenizer or weights that are not available.
    """
    open_split = functools.cache(functools.partial(sources.source, run.data.source))
    run, step, bundle, notes = _settle(run, open_split)
    program = training.prepare(run)
    tokenizer = _tokenizer(run, step, bundle, open_split)
    if tokenizer.vocab_size > run.model.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {run.model.vocab_size}: "
            "set model.vocab-size to at least that"
        )
    return Resolved(
        run=run, step=step, program=program, bundle=bundle, tokenizer=tokenizer,
        make_rows=run.objective.rows(tokenizer, run.data),
        train_source=open_split(run.data.train_split), validation_source=open_split(run.data.validation_split),
        notes=notes,
    )  # fmt: skip


def load_weights(run: Run, name: str, **kwargs: Any) -> Bundle:
    """Other weights, by `runs.load`, in this run's precision and on its devices."""
    mesh = sharding.make_mesh(**dataclasses.asdict(run.mesh))
    defaults = {"dtype": run.compute.dtype, "param_dtype": run.compute.param_dtype, "seed": run.training.seed}
    return runs.load(name, mesh=mesh, **defaults | kwargs)


def _settle(run: Run, open_split: OpenSplit) -> tuple[Run, int | None, Bundle | None, list[str]]:
    """The completed run, the step of its latest checkpoint, the weights that it begins with, and the settings that
    changed since it began."""
    before, step = _found(Path(run.directory))
    if before is not None and run.init_from is not None and run.init_from == before.init_from:
        run = dataclasses.replace(run, model=before.model)  # of the weights that it began with
    run = _for_data(run, open_split)
    notes = [] if before is None else runs.check_same(before, run)
    if run.init_from is None or step is not None:
        return run, step, None, notes
    labels = getattr(run.model, "labels", None)
    bundle = load_weights(run, run.init_from, task=run.objective.task, labels=labels)
    return _for_data(dataclasses.replace(run, model=bundle.config), open_split), None, bundle, notes


def _found(directory: Path) -> tuple[Run | None, int | None]:
    """The run that a folder holds, and the step of its latest checkpoint. A run that never saved binds nothing: its
    settings may be corrected.

    Raises:
        ValueError: checkpoints of an unknown run.
    """
    step = max(steps(directory / "checkpoints"), default=None)
    if step is None:
        return None, None
    if not names.is_run(directory):
        raise ValueError(
            f"{directory} holds checkpoints but no run.json to describe them: give this run another "
            "--directory, or put run.json back"
        )
    return runs.read(directory), step


def _for_data(run: Run, open_split: OpenSplit) -> Run:
    """The run, completed from its data: names of classes, for example."""
    classes = lambda field: open_split(run.data.train_split).classes(field)
    objective, model = run.objective.for_data(run.model, classes)
    return dataclasses.replace(run, objective=objective, model=model)


def _tokenizer(run: Run, step: int | None, bundle: Bundle | None, open_split: OpenSplit) -> Tokenizer:
    """The run's own tokenizer, once it has saved a step, or else that in its settings, in its first weights, or trained
    on its training split."""
    folder, vocabulary = Path(run.directory) / "tokenizer", run.vocabulary
    if step is not None and folder.is_dir():
        return Tokenizer.load(folder)
    if vocabulary.path is not None:
        return load_tokenizer(vocabulary.path)
    if bundle is not None and bundle.tokenizer is not None:
        return bundle.tokenizer
    documents = open_split(run.data.train_split)
    texts = (text for document in documents for text in run.objective.texts_of(document))
    return Tokenizer.train(texts, vocabulary.size, CACHE, kind=vocabulary.kind, lower_case=vocabulary.lower_case)
