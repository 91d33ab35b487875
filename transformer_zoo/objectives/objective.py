"""What an objective is: the rows it reads, the loss of a batch, and the model it trains."""

import abc
import dataclasses
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax

from transformer_zoo import registry, trees
from transformer_zoo.config import Data
from transformer_zoo.data.documents import Source, field_of, text_in
from transformer_zoo.data.labels import Tell
from transformer_zoo.data.rows import RowMaker
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.objectives.metrics import ByClass

Batch = dict[str, jax.Array]
Sums = dict[str, Any]  # arrays, and trees of arrays


def training_mode(key: jax.Array | None) -> dict[str, Any]:
    """Arguments of a model's `apply`: with a key for dropout it is in training mode, without one in evaluation mode."""
    return {"train": key is not None, "rngs": None if key is None else {"dropout": key}}


def attributes_of(part: str) -> tuple[property, property, property]:
    """`config`, `task` and `compute` of a module around several models: those of its attribute `part`."""
    config, task, compute = (property(operator.attrgetter(f"{part}.{name}")) for name in ("config", "task", "compute"))
    return config, task, compute


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """What a model learns. Its fields are settings of the run. A file with a subclass, its maker of rows in `data/` and
    its name in `OBJECTIVES` add an objective.

    `counts` and `sums` of batches add up. `loss`, which is linear in the sums, and `report` are computed from them.
    Because a loss is divided by the counts of the whole batch, neither accumulation nor packing nor sharding changes
    it. The names of a batch's arrays end in their dimensions: B rows, T tokens of a row.
    """

    name: ClassVar[str]
    """Its name in run.json and on the command line."""
    task: ClassVar[str]
    """The task of a family's model that it trains."""
    loss_unit: ClassVar[str]
    """The unit of its loss, such as `nats a token`. Losses of several units do not compare."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Regular expressions: parameters whose whole path matches one of them are never trained, such as a teacher's."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Its settings that give the parameters their shapes: a run cannot go on with others."""
    from_data: ClassVar[dict[str, Any]] = {}
    """Its settings that `with_labels` finds, each with the value that asks for this: a run that goes on keeps what it
    found when it began."""

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> "tuple[Objective, Any]":
        """The objective and the model's configuration, completed from the data: names of classes, for example.

        Args:
            classes: a field of the data that holds labels to the names of the classes, or None if they have no names.

        Raises:
            ValueError: the data contradict the configuration.
        """
        return self, config

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields of a document that the objective reads: the inputs, and what is predicted from them."""
        return self.input_fields

    def check_documents(self, documents: Source) -> None:
        """Checks the first document.

        Raises:
            ValueError: it lacks a field that the objective reads; the message has those that there are.
        """
        for name in self.reads if len(documents) else ():
            try:
                field_of(documents[0], name)
            except ValueError as error:
                values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
                setting = next(
                    (key for key, x in values.items() if x == name or isinstance(x, tuple) and name in x), ""
                )
                named = f", which is objective.{setting}" if setting else ""
                raise ValueError(f"the objective {self.name} reads the field {name!r}{named}: {error}") from None

    def with_labels(
        self, config: Any, splits: Mapping[str, Source], head: Any = None, tell: Tell | None = None
    ) -> "tuple[Objective, str]":
        """The objective with what the labels of the data settle, and a line about them. Reads all labels.

        Args:
            config: the model's configuration.
            splits: by name; the training split first.
            head: the configuration of the weights to begin with, if their head scores what this task's does.
            tell: shows a line, if reading takes long.

        Raises:
            ValueError: a label that is missing or wrong, in any of the splits; the message says where it is.
        """
        return self, ""

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The texts in a document, for a tokenizer to learn from."""
        return (text_in(document, "text"),)

    @property
    def inputs(self) -> dict[str, str]:
        """The fields of an input of `predict`, and the fields of a document that hold them."""
        return {"text": "text"}

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The fields of a document that the model reads, without those that it predicts from them."""
        return tuple(self.inputs.values())

    def input_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """The input of `predict` that a document holds.

        Raises:
            ValueError: there is no such field.
        """
        return {name: field_of(document, field) for name, field in self.inputs.items()}

    @abc.abstractmethod
    def maker(self, data: Data) -> RowMaker:
        """The maker of rows, without a tokenizer.

        Raises:
            ValueError: these settings of the data do not go with the objective.
        """

    def rows(self, tokenizer: Tokenizer, data: Data) -> RowMaker:
        """The maker of rows.

        Raises:
            ValueError: as `maker`; the tokenizer lacks special tokens that are needed.
        """
        return dataclasses.replace(self.maker(data), tokenizer=tokenizer)

    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a global batch of `batch` rows of `length` tokens."""
        shapes = self.maker(Data(length=length)).shapes(batch)
        return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}

    @abc.abstractmethod
    def counts(self, batch: Batch) -> Sums:
        """Divisors of the sums; among them the number of `tokens` that are read."""

    @abc.abstractmethod
    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Sums over the batch. With a key the model is in training mode: dropout is on."""

    @abc.abstractmethod
    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """The scalar that training minimises."""

    @abc.abstractmethod
    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Measures by name; `loss` is one of them."""

    def by_class(self, sums: Sums) -> ByClass | None:
        """The measures of each class; None if there are no classes."""
        return None

    def model(self, config: Any, compute: Any) -> Any:
        """The module to train, or an object with a module's `config`, `task`, `compute`, `init` and `apply`.

        Raises:
            ValueError: the family does not have the task.
        """
        return self.part(config, self.task, compute)

    def part(self, config: Any, task: str, compute: Any) -> Any:
        """A family's model for a task.

        Raises:
            ValueError: the family does not have the task.
        """
        family = registry.module_of(config)
        if task not in family.PUBLISHED.tasks:
            raise ValueError(
                f"the objective {self.name} needs the task {task!r}, which {family.__name__} lacks: it has "
                f"{', '.join(family.PUBLISHED.tasks)}"
            )
        return family.Model(config, task=task, compute=compute)

    def begin(self, params: trees.Tree, load: Callable[..., Any]) -> trees.Tree:
        """The parameters to begin with, from fresh ones (or those of `Run.init_from`).

        Args:
            load: `runs.load` with the run's precision and mesh: the `Bundle` of a run's folder or of a published model.
        """
        return params

    def result(self, model: Any, params: trees.Tree) -> tuple[Any, trees.Tree]:
        """The part of the trained model that is used afterwards, to generate with or to publish."""
        return model, params
