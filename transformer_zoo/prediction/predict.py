"""`predict`, and the readers by task."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from transformer_zoo import arguments, hugging_face, registry
from transformer_zoo.prediction.answers import Answers
from transformer_zoo.prediction.entities import Entities
from transformer_zoo.prediction.generated import GeneratedTexts
from transformer_zoo.prediction.reader import Input, Reader
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
    "seq2seq-lm": GeneratedTexts,
}


def predict(
    m: arguments.Loaded, inputs: str | Mapping[str, Any] | Iterable[Any], *, batch_size: int = 32, **settings: Any
) -> Any:
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
    | seq2seq-lm | a text | `generated_text` |

    The reader of the task (`READERS`) describes them in full. Special tokens that a text spells out are read as such.
    Rows are sorted by length and padded to one of a few lengths, so that few programs are compiled. Parameters that lie
    on a mesh stay there.

    Args:
        m: a model with its parameters and tokenizer, as `from_pretrained` returns it.
        inputs: an input or a list of them. An input is a text or a dictionary of texts; `text` and `text_pair` also
            a tuple of both, in a list: `[("It rains.", "It is wet.")]`.
        batch_size: rows at a time.
        **settings: those of the task, such as top_k, targets (masked-lm), aggregation (token-classification),
            no_answer, answer_length and overlap (question-answering). They are the fields of its reader.

    Returns:
        The result, of plain JSON types; for a list of inputs, the list of their results in the same order.

    Raises:
        ValueError: a task without a reader, no tokenizer, a setting out of its range; an input that lacks fields or has
            others, an empty text, a text that has tokens that the model lacks, or one that is too long where the
            end cannot be left out. (A text to be classified is cut, with a warning.) A tuple of two texts alone, which
            may be a pair or two inputs.
        TypeError: an argument or a setting of another type, or an unknown setting.
    """
    arguments.check(predict, locals())
    reader, single = reader_of(m, **settings), isinstance(inputs, str | Mapping)
    if reader.pair and isinstance(inputs, tuple) and [type(text) for text in inputs] == [str, str]:
        raise ValueError(
            "inputs is a tuple of two texts: give [(text, text_pair)] for a pair, [text, text] for two inputs"
        )
    checked = [reader.check(value, f"inputs[{i}]") for i, value in enumerate([inputs] if single else inputs)]
    found = list(results(m, reader, checked, batch_size=batch_size))
    return found[0] if single else found


def reader_of(m: arguments.Loaded, **settings: Any) -> Reader:
    """The reader of a model's task with these settings.

    Raises:
        ValueError: a task without a reader, no tokenizer, or a setting out of its range.
        TypeError: an unknown setting, or one of another type.
    """
    task = m.model.task
    if task not in READERS:
        offered = [name for name in registry.module_of(m.config).PUBLISHED.tasks if name in READERS]
        raise ValueError(f"a model for the task {task!r} cannot predict: load it for one of {', '.join(offered)}")
    if m.tokenizer is None:
        raise ValueError(registry.no_tokenizer(m))
    known = [field.name for field in dataclasses.fields(READERS[task])]
    for name in settings:
        if name not in known:
            raise TypeError(
                f"predict() has no setting {name!r} for {task}: it has {', '.join(['batch_size', *known])}."
                f"{hugging_face.hint(name, hugging_face.PREDICT.get(name), known)}"
            )
    return READERS[task](**settings).for_model(m)


def results(m: Any, reader: Reader, inputs: Sequence[Input], *, batch_size: int = 32) -> Iterator[Any]:
    """The results of checked inputs, in their order, computed as they are asked for.

    Raises:
        ValueError: an input that the model cannot read, before any result.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    return reader.results(m, inputs, batch_size)
