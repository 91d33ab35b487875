"""What an objective is: from documents to rows, from a batch to a loss, and which model it trains."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax

from transformer_zoo import registry, trees
from transformer_zoo.config import Data
from transformer_zoo.data.packing import Rows
from transformer_zoo.data.tokenizers import Tokenizer

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]
MakeRows = functools.partial[Rows]  # of a function: documents, random numbers -> rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective(abc.ABC):
    """What a model learns. Its fields are settings of the run; a subclass and its line in `OBJECTIVES` add one.

    Of a batch there are `counts` and `sums`, which add up over batches; of these there are the `loss`, linear in the
    sums, and a `report` for people. Because a loss is divided by the counts of the whole batch, neither accumulation
    nor packing nor sharding changes it. The arrays of a batch say in their names what their dimensions are: B rows, T
    tokens of a row.
    """

    name: ClassVar[str]
    """What run.json and the command line call it."""
    task: ClassVar[str]
    """The task of a family's model that it trains."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Regular expressions: parameters whose whole path matches one of them are never trained, such as a teacher's."""
    fixed: ClassVar[tuple[str, ...]] = ()
    """Its settings that give the parameters their shapes: a run cannot go on with others."""

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> "tuple[Objective, Any]":
        """The objective and the model's configuration with what the data say about them.

        Args:
            classes: of a field of the data that holds labels, the names of the classes; None where nothing names them.

        Raises:
            ValueError: the data contradict the configuration.
        """
        return self, config

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The texts in a document, for a tokenizer to learn from."""
        return (document["text"],)

    @abc.abstractmethod
    def rows(self, tokenizer: Tokenizer, data: Data) -> MakeRows:
        """A function of a group of documents (list of dictionaries) and a generator of random numbers (numpy's) that
        gives rows: a dictionary of arrays with one leading dimension.

        A `functools.partial` of a function of `data/`, so that worker processes can be sent it. Its keywords say which
        rows it makes, for a saved position: tokenizers, and what can be written as JSON.

        Raises:
            ValueError: the tokenizer has not the special tokens that are needed.
        """

    @abc.abstractmethod
    def shapes(self, batch: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a global batch of so many rows of so many tokens. Rows of zeros fill up a last batch: they must
        count for nothing."""

    @abc.abstractmethod
    def counts(self, batch: Batch) -> Sums:
        """What the sums are divided by; in any case how many `tokens` are read."""

    @abc.abstractmethod
    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """What is measured. With a key the model is trained: dropout is on."""

    @abc.abstractmethod
    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """What is made small."""

    @abc.abstractmethod
    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Measures by name; `loss` is one of them."""

    def model(self, config: Any, compute: Any) -> Any:
        """What is trained: a module, or what looks like one (`config`, `task`, `compute`, `init`, `apply`).

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
                f"the objective {self.name} needs the task {task!r}, which {family.__name__} has not: it has "
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
        """The model that one wants in the end, to generate with or to publish, of the one that was trained."""
        return model, params
