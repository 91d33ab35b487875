"""Evaluates a model by an objective on a source of documents."""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from transformer_zoo import arguments, registry, trees
from transformer_zoo.config import Data
from transformer_zoo.data import pipeline, sources
from transformer_zoo.data.rows import Rows
from transformer_zoo.evaluation import loss
from transformer_zoo.nn import checks
from transformer_zoo.objectives import OBJECTIVES
from transformer_zoo.objectives.objective import Objective


def source_of(data: Data, split: str, inputs: Sequence[str] = ()) -> sources.Source:
    """The documents to train on, or to evaluate on. With a source of its own to evaluate on, nothing is held out.

    Args:
        inputs: the fields that the objective reads as inputs.

    Raises:
        ValueError, FileNotFoundError: as `sources.source`.
    """
    apart, by = data.validation_source, inputs if data.held_out_by == "inputs" else ()
    if split == "train":
        share = data.validation_share if apart is None else 0
        return sources.source(data.source, data.train_split, validation=share, by=by)
    share = data.validation_share if apart is None else 1
    return sources.source(apart or data.source, data.validation_split, validation=share, by=by)


def documents_of(
    data: Data, source: str | None, split: str | None, inputs: Sequence[str] = ()
) -> tuple[str, sources.Source]:
    """The documents to measure on, by the name of their source and open.

    Args:
        data: of a run, whose held-out documents are measured on unless other ones are given.
        source, split: as in `evaluate`.
        inputs: as in `source_of`.
    """
    by = inputs if data.held_out_by == "inputs" else ()
    if source is not None:
        return source, sources.source(source, split, validation=data.validation_share, by=by)
    if split in (None, data.validation_split):
        return data.validation_source or data.source, source_of(data, "validation", inputs)
    share = data.validation_share if data.validation_source is None else 0
    return data.source, sources.source(data.source, split, validation=share, by=by)


def evaluate(
    m: arguments.Loaded,
    *,
    source: str | sources.Source | None = None,
    split: str | None = None,
    objective: str | Objective | None = None,
    length: int | None = None,
    packing: Literal["documents", "concat"] | None = None,
    batch_size: int = 16,
    batches: int | None = None,
) -> loss.Report:
    """The loss of a model and the other measures of its objective, and the number of tokens, bytes, ... measured: a
    dictionary, whose attribute `by_class` has the measures of each class of a classifier and its confusion matrix.

    Args:
        m: a `Bundle`: a model, its parameters and its tokenizer.
        source: the documents, named as in a recipe's data.source: "text:notes/*.md", "tfds:wikipedia/20230601.en",
            ...; or an open source. None: that on which the run was evaluated which trained the model, and of a
            published model "python_stdlib".
        split: split of a source given by name: "train", "validation", "test" or "all", where the source has it. None:
            of the run's own source the held-out split; else all of local files, and of a data set with splits of its
            own "validation".
        objective: the name of an objective, or an `Objective`. None: the run's, if it measures this model; else the one
            of the model's task.
        length: tokens in a row. None: those of the run, or else the model's positions, at most 1024.
        packing: how documents become rows, as in a recipe's data.packing. None: as in the run, or else "documents".
        batch_size: rows at a time.
        batches: stop after this number of batches. None: the whole split.

    Raises:
        ValueError: no tokenizer, no such objective or split, a setting out of its range, a label that is missing or
            wrong, nothing to measure.
        FileNotFoundError: no such source.
        TypeError: an argument of another type.
    """
    arguments.check(evaluate, locals())
    if batches is not None and batches < 1:
        raise ValueError(f"batches is {batches}: it must be at least 1")
    if m.tokenizer is None:
        raise ValueError(registry.no_tokenizer(m))
    if not isinstance(objective, Objective):
        objective = objective_of(m, objective)
    data = Data(length=default_length(m)) if m.run is None else m.run.data
    if source is None or isinstance(source, str):
        _, documents = documents_of(data, source, split, objective.input_fields)
    else:
        documents = source
    objective.check_documents(documents)
    objective, _ = objective.for_data(m.config, documents.classes)
    objective, _ = objective.with_labels(m.config, {documents.split: documents})
    data = Data(length=data.length if length is None else length, packing=packing or data.packing)
    make_rows = objective.rows(m.tokenizer, data)
    with contextlib.closing(
        pipeline.Pipeline(documents, make_rows, batch_size=batch_size, shuffle=False, epochs=1)
    ) as rows:
        batches_of_rows = itertools.islice(rows, batches)
        if m.tokenizer.vocab_size > m.config.vocab_size:
            batches_of_rows = _within(batches_of_rows, m.config.vocab_size)
        return loss.evaluate(m.model, objective, m.params, batches_of_rows)


def _within(batches: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The batches. A compiled program checks no ids: a tokenizer with more tokens than the model may meet one of them.

    Raises:
        ValueError: an id that the model lacks.
    """
    for rows in batches:
        for name in ("tokens_BT", "source_BS", "target_BT"):
            if name in rows:
                checks.check_ids(rows[name], size, name, "the vocabulary of the model")
        yield rows


def objective_of(m: Any, name: str | None = None) -> Objective:
    """The objective of this name. None: that of the run which trained the model, if it measures just this model; else
    the one of the model's task.

    Raises:
        ValueError: there is no such objective, or the model's family lacks its task.
    """
    if m.run is not None and name in (None, m.run.objective.name):
        objective = m.run.objective
        if objective.model(m.config, m.model.compute) == m.model:
            return objective
    name = name or m.model.task
    if name not in OBJECTIVES:
        raise ValueError(
            f"there is no objective {name!r} to measure: choose one of {', '.join(OBJECTIVES)}."
            f"{trees.nearest(name, OBJECTIVES)}"
        )
    objective = OBJECTIVES[name]()
    objective.model(m.config, m.model.compute)  # refuses a family without the task
    return objective


def default_length(m: Any) -> int:
    """Tokens in a row: the model's positions, at most 1024."""
    return min(1024, m.config.max_length or 1024)
