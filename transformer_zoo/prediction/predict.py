"""`predict`: the readers by task, and the engine that runs their programs."""

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import trees
from transformer_zoo.nn.checks import check_ids
from transformer_zoo.prediction.answers import Answers
from transformer_zoo.prediction.entities import Entities
from transformer_zoo.prediction.reader import Input, Outputs, Reader, Row
from transformer_zoo.prediction.sequences import Choices, NextSentence, TextLabels
from transformer_zoo.prediction.vocabulary import Continuations, FilledMasks

READERS: dict[str, type[Reader]] = {
    "sequence-classification": TextLabels,
    "token-classification": Entities,
    "question-answering": Answers,
    "masked-lm": FilledMasks,
    "causal-lm": Continuations,
    "multiple-choice": Choices,
    "next-sentence": NextSentence,
}

SHORTEST = 16  # length of the shortest rows that a program is compiled for; each next one is twice as long
PROGRAMS = 8  # lengths for which programs are compiled, at most, where the model limits the length
CHUNK = 1024  # inputs that are sorted by length together


def predict(m: Any, inputs: Any, *, batch_size: int = 32, **settings: Any) -> Any:
    """What a model answers to texts, by its task.

    | task | an input | its result |
    |---|---|---|
    | sequence-classification | a text, or `text` and `text_pair` | `label`, `score`, `scores` of all labels |
    | token-classification | a text | a list of `entity_group`, `score`, `word`, `start`, `end` |
    | question-answering | `question` and `context` | `answer`, `score`, `start`, `end` |
    | masked-lm | a text with a mask | a list of `token_str`, `token`, `score`, `sequence` |
    | causal-lm | `continuations`, and possibly `text` | a list of `continuation`, `score`, `tokens` |
    | multiple-choice | `text` and `choices` | `choice`, `answer`, `score`, `scores` |
    | next-sentence | `text` and `text_pair` | `is_next`, `score` |

    The reader of the task (`READERS`) describes them in full. Special tokens that a text spells out are read as such.
    Rows are sorted by length and padded to one of a few lengths, so that few programs are compiled. Parameters that lie
    on a mesh stay there.

    Args:
        m: a model with its parameters and tokenizer, as `from_pretrained` returns it.
        inputs: an input or a list of them. An input is a text or a dictionary of texts.
        batch_size: rows at a time.
        **settings: those of the task, such as top_k, aggregation (token-classification), no_answer, answer_length and
            overlap (question-answering). They are the fields of its reader.

    Returns:
        The result, of plain JSON types; for a list of inputs, the list of their results in the same order.

    Raises:
        ValueError: a task without a reader, no tokenizer, a setting out of its range; an input that lacks fields or has
            others, an empty text, a text that is too long to be read whole or has tokens that the model lacks.
        TypeError: an unknown setting.
    """
    reader, single = reader_of(m, **settings), isinstance(inputs, str | Mapping)
    checked = [reader.check(value, f"inputs[{i}]") for i, value in enumerate([inputs] if single else inputs)]
    found = list(results(m, reader, checked, batch_size=batch_size))
    return found[0] if single else found


def reader_of(m: Any, **settings: Any) -> Reader:
    """The reader of a model's task with these settings.

    Raises:
        ValueError: a task without a reader, no tokenizer, or a setting out of its range.
        TypeError: an unknown setting.
    """
    task = m.model.task
    if task not in READERS:
        raise ValueError(f"a model for the task {task!r} cannot predict: load it for one of {', '.join(READERS)}")
    if m.tokenizer is None:
        raise ValueError("the model has no tokenizer, which turns texts into tokens")
    known = [field.name for field in dataclasses.fields(READERS[task])]
    for name in settings:
        if name not in known:
            raise TypeError(
                f"predict() has no setting {name!r} for {task}: it has {', '.join(['batch_size', *known])}."
                f"{trees.nearest(name, known)}"
            )
    return READERS[task](**settings)


def results(m: Any, reader: Reader, inputs: Sequence[Input], *, batch_size: int = 32) -> Iterator[Any]:
    """The results of checked inputs, in their order; of as many inputs at a time as are sorted together."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    params = jax.tree.map(jnp.asarray, m.params)
    for start in range(0, len(inputs), CHUNK):
        examples = reader.examples(m, inputs[start : start + CHUNK])
        for example in examples:
            for row in example.rows:
                check_ids(row["tokens_BT"][None], m.config.vocab_size, example.input.name, "the model's vocabulary")
        rows = [row for example in examples for row in example.rows]
        # All batches have one size, those of the last chunk too.
        size = batch_size if len(inputs) > CHUNK else min(batch_size, _power_of_two(len(rows)))
        outputs = iter(_run(m.model, params, reader, rows, size, reader.length(m)))
        for example in examples:
            yield reader.result(m, example, list(itertools.islice(outputs, len(example.rows))))


def _run(
    model: Any, params: Any, reader: Reader, rows: Sequence[Row], size: int, limit: int | None
) -> list[Outputs]:  # fmt: skip
    """The outputs of rows, in their order, by batches of one size."""
    found: list[Outputs] = [{} for _ in rows]
    program, lengths = program_of(model, reader), [len(row["tokens_BT"]) for row in rows]
    order = np.argsort(lengths, kind="stable")
    with _on_their_devices(params):
        for chunk in (order[i : i + size] for i in range(0, len(order), size)):
            outputs = program(params, _batch([rows[i] for i in chunk], size, _length(lengths[chunk[-1]], limit)))
            outputs = {name: np.asarray(x) for name, x in jax.device_get(outputs).items()}
            for number, i in enumerate(chunk):
                per_token = lambda name: "BT" in name.rpartition("_")[2]
                found[i] = {
                    name: x[number, : lengths[i]] if per_token(name) else x[number] for name, x in outputs.items()
                }
    return found


@functools.lru_cache(maxsize=16)
def program_of(model: Any, reader: Reader) -> Callable[..., dict[str, jax.Array]]:
    """The program of a model's reader: (params, batch) -> outputs."""
    return jax.jit(functools.partial(reader.program, model))


def _batch(rows: Sequence[Row], size: int, length: int) -> Row:
    """Rows padded on the right to [size, length]; further rows are empty."""
    shape = size, length
    batch = {name: np.zeros(shape, x.dtype) for name, x in rows[0].items()} | {"valid_BT": np.zeros(shape, bool)}
    for number, row in enumerate(rows):
        for name, x in row.items():
            batch[name][number, : len(x)] = x
        batch["valid_BT"][number, : len(row["tokens_BT"])] = True
    return batch


def _length(tokens: int, limit: int | None) -> int:
    """The padded length of a row with this number of tokens: the limit, or a power of two below it."""
    if limit is None:
        return max(SHORTEST, _power_of_two(tokens))
    shortest = max(SHORTEST, _power_of_two(limit) >> (PROGRAMS - 1))
    return min(max(shortest, _power_of_two(tokens)), limit)


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << max(number - 1, 0).bit_length()


def _on_their_devices(params: Any) -> contextlib.AbstractContextManager:
    """The context in which a program runs where its parameters lie."""
    sharding = jax.tree.leaves(params)[0].sharding
    device, *others = sharding.device_set
    return jax.set_mesh(sharding.mesh) if others else jax.default_device(device)
