"""The base of all readers: how the inputs of a task become rows, and the outputs of rows become results."""

import abc
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import arguments
from transformer_zoo.data.encoding import Encoding
from transformer_zoo.data.labelled import shortened, windows
from transformer_zoo.nn.checks import check_ids
from transformer_zoo.prediction import engine
from transformer_zoo.prediction.engine import Outputs, Row


@dataclasses.dataclass(frozen=True)
class Input:
    """An input that was checked."""

    name: Any
    """What an error calls it, as a string: `inputs[3]`, or its place in a file."""
    fields: Mapping[str, Any]
    """Empty: the text is blank, and the result is null."""
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of its document that the task does not use, for a table of results."""

    @property
    def is_blank(self) -> bool:
        return not self.fields

    def error(self, fault: str) -> ValueError:
        return ValueError(f"{self.name} {fault}")


@dataclasses.dataclass(frozen=True)
class Example:
    """An input as rows."""

    input: Input
    rows: Sequence[Row]
    about: Any = None
    """What else the reader needs to make a result."""
    shortened: bool = False
    """Tokens at its end are left out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader(abc.ABC):
    """A task's inputs and results. Its fields are the settings of `predict` for the task."""

    required: ClassVar[tuple[str, ...]]
    """The fields of an input. Where there is one, of text, a plain string stands for it."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Fields that an input may have besides."""
    lists: ClassVar[tuple[str, ...]] = ()
    """Those fields that hold several texts."""
    pair: ClassVar[tuple[str, ...]] = ()
    """The two fields that a tuple of two texts stands for. Empty: a tuple is no input."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(field.default, tuple):  # one may be given alone, as on the command line
                value = getattr(self, field.name)
                several = (value,) if isinstance(value, str | int) else value
                object.__setattr__(self, field.name, tuple(several) if isinstance(several, list) else several)
        arguments.check(type(self), vars(self))

    def for_model(self, m: Any) -> "Reader":
        """The reader, with settings that depend on a model settled.

        Raises:
            ValueError: settings that do not fit the model.
        """
        return self

    @abc.abstractmethod
    def results(self, m: Any, inputs: Sequence[Input], batch_size: int) -> Iterator[Any]:
        """The results of inputs, as plain JSON, in their order. What is wrong with an input is an error before the
        first result."""

    def columns(self, m: Any) -> tuple[str, ...]:
        """The fields of a result as the columns of a table, `scores.good` for a member of `scores`. Empty: results are
        lists."""
        return ()

    def made_with(self, m: Any) -> dict[str, Any]:
        """What decides the results besides the model and the inputs: the settings."""
        return dataclasses.asdict(self)

    @property
    def text_field(self) -> str:
        """The first field that holds a text."""
        return next(field for field in (*self.required, *self.optional) if field not in self.lists)

    @property
    def takes_text(self) -> bool:
        """Whether a plain string is an input."""
        return len(self.required) == 1 and self.required[0] not in self.lists

    def is_blank(self, document: str | Mapping[str, Any]) -> bool:
        """Whether a document has an empty text, or one of white space only, where a text is all that is needed."""
        text = document if isinstance(document, str) else document.get(self.text_field)
        return self.takes_text and isinstance(text, str) and not text.strip()

    def length(self, m: Any) -> int | None:
        """The number of tokens in the longest row. None: there is no limit."""
        return m.config.max_length

    def check(self, value: Any, name: Any, others: bool = False) -> Input:
        """An input with the fields that the task needs.

        Args:
            value: a string, a tuple of two or a mapping.
            name: what errors call it, as a string.
            others: leave out fields that the task does not use, rather than refuse them.

        Raises:
            ValueError: another type, missing or unknown fields, or a text that is empty or not Unicode.
        """
        if isinstance(value, str) and self.takes_text:
            value = {self.required[0]: value}
        if self.pair and isinstance(value, tuple) and len(value) == len(self.pair):
            value = dict(zip(self.pair, value))
        known = (*self.required, *self.optional)
        if not isinstance(value, Mapping) or not set(self.required) <= value.keys():
            fields = ", ".join(map(str, value)) if isinstance(value, Mapping) else ""
            given = f"has the fields {fields}" if fields else f"is {type(value).__name__}"
            form = f"{'a text, or ' if self.takes_text else ''}a dictionary with {' and '.join(self.required)}"
            more = f" (and possibly {', '.join(self.optional)})" if self.optional else ""
            pair = f", or a tuple ({', '.join(self.pair)})" if self.pair else ""
            raise ValueError(f"{name} {given}: expected {form}{more}{pair}")
        if unknown := [field for field in value if field not in known and not others]:
            raise ValueError(f"{name} has the field {unknown[0]!r}, which the task does not use: {', '.join(known)}")
        value = {field: value[field] for field in known if value.get(field) is not None}
        for field in known:
            if field in value or field in self.required:
                self._check_field(value.get(field), field, name)
        return Input(name, value)

    def _check_field(self, value: Any, field: str, name: Any) -> None:
        several = field in self.lists
        if several and not (isinstance(value, list | tuple) and value):
            raise ValueError(f"{name}: {field} must be a list of texts, and not empty")
        for text in value if several else [value]:
            if not isinstance(text, str):
                raise ValueError(f"{name}: {field} is {type(text).__name__}, where a text is expected")
            if not text or not several and not text.strip():
                raise ValueError(f"{name}: {field} is empty")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                fault = f"{field} has a lone surrogate at character {error.start}: it is not Unicode text"
                raise ValueError(f"{name}: {fault}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowReader(Reader):
    """A reader whose results come of one pass over rows."""

    @abc.abstractmethod
    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        """The rows of each input. Everything that can be wrong with an input is an error here or in `check`."""

    @abc.abstractmethod
    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """What is computed of a batch of rows, as `engine.run` takes it."""

    @abc.abstractmethod
    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> Any:
        """The result for an input, given the outputs of its rows."""

    def results(self, m: Any, inputs: Sequence[Input], batch_size: int) -> Iterator[Any]:
        length = self.length(m)
        examples = [example for some in engine.chunks(inputs) for example in self.examples(m, some)]
        for example in examples:
            for row in example.rows:
                check_ids(row["tokens_BT"][None], m.config.vocab_size, example.input.name, "the model's vocabulary")
        if count := sum(example.shortened for example in examples):
            warnings.warn(
                f"{count} of {len(inputs)} inputs are longer than the model's {length} tokens: their ends are left out",
                stacklevel=2,
            )
        program, params = program_of(m.model, self), jax.tree.map(jnp.asarray, m.params)
        limit = engine.limit_of((row for example in examples for row in example.rows), length)
        for some in engine.chunks(examples):
            rows = [row for example in some for row in example.rows]
            size = engine.batch_size_for(len(rows), len(inputs), batch_size)
            outputs = iter(engine.run(program, params, rows, size, limit))
            for example in some:
                yield self.result(m, example, list(itertools.islice(outputs, len(example.rows))))


@functools.lru_cache(maxsize=16)
def program_of(model: Any, reader: RowReader) -> Callable[..., dict[str, jax.Array]]:
    """The program of a model's reader: (params, batch) -> outputs. It is compiled once for a shape."""
    return jax.jit(functools.partial(reader.program, model))


def encode(m: Any, texts: Sequence[str], pairs: Sequence[str | None]) -> list[Encoding]:
    """Texts, or pairs of texts, in the tokenizer's frame, with special tokens read where the text spells them out."""
    found: dict[int, Encoding] = {}
    for paired in (False, True):
        which = [i for i, pair in enumerate(pairs) if (pair is not None) == paired]
        seconds = [pairs[i] for i in which] if paired else None
        if which:
            found |= zip(
                which, m.tokenizer.encode_batch([texts[i] for i in which], seconds, special=True, template=True)
            )
    return [found[i] for i in range(len(texts))]


def row(encoding: Encoding, kept: np.ndarray | slice = slice(None), **others: np.ndarray) -> Row:
    """The row of these tokens of an encoding."""
    return {"tokens_BT": encoding.ids[kept], "segments_BT": encoding.segments[kept], **others}


def check_overlap(overlap: int | None) -> None:
    """Raises ValueError for a negative overlap."""
    if overlap is not None and overlap < 0:
        raise ValueError(f"overlap is {overlap}: it must be at least 0")


def windows_of(
    one: Input, encoding: Encoding, text: int, length: int | None, overlap: int | None, usual: int
) -> list[np.ndarray]:
    """The tokens of each row of an input: a piece of one of its texts, and all that stands around it.

    Args:
        text: which one, 0 or 1.
        length: the largest number of tokens in a row. None: there is no limit.
        overlap: tokens of the text that consecutive rows have in common. None: the usual number, or half a piece.

    Raises:
        ValueError: no room for a token of the text that the row before does not have.
    """
    size = int((encoding.texts == text).sum())
    room = size if length is None else length - (len(encoding) - size)
    if size <= room:
        return [np.arange(len(encoding))]
    if overlap is None:
        overlap = min(usual, room // 2)
    if overlap >= room:
        raise one.error(f"has rows with room for {max(room, 0)} tokens of its text, and overlap is {overlap}")
    return list(windows(encoding, text, length, overlap))


def shorten(encodings: Sequence[Encoding], length: int | None) -> list[np.ndarray]:
    """The tokens that are kept of each text: those that exceed the length are cut off the end, of a pair from the
    longer text."""
    return [np.arange(len(e)) if length is None else shortened(e, length) for e in encodings]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
