"""Rows from labelled examples: the class of a text, the classes of its tokens, or the span of it that is an answer.

Labels of tokens and answers are given by characters of the text; the tokenizer's offsets map them to tokens.
"""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_zoo import json_files
from transformer_zoo.data.documents import field_of
from transformer_zoo.data.labels import class_of, labels_in, number_of
from transformer_zoo.data.rows import RowMaker, Rows, Shapes, zeros
from transformer_zoo.data.tokenizers import Encoding, Tokenizer

ANSWERS = 6
"""Answers to a question that are kept, A: no question of SQuAD has more."""

Example = dict[str, Any]
Problem = Literal["single_label_classification", "multi_label_classification", "regression"]
Part = tuple[Encoding, np.ndarray]
"""An encoding, and the positions of the tokens of it that a row holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FramedRows(RowMaker, abc.ABC):
    """Rows of one text or two in the tokenizer's frame. A subclass adds the labels."""

    @property
    @abc.abstractmethod
    def texts_in_row(self) -> int:
        """How many texts a row has: 1 or 2."""

    def check(self, tokenizer: Tokenizer) -> None:
        """There is room for text in the frame."""
        _check_room(self.length - self.frame(tokenizer), self.length)

    def frame(self, tokenizer: Tokenizer) -> int:
        """The number of tokens that the tokenizer puts around the texts of a row."""
        return len(tokenizer.encode_batch(*[[""]] * self.texts_in_row, template=True)[0])

    def shapes(self, batch: int) -> Shapes:
        """The arrays of `framed`."""
        whole = (batch, self.length)
        return {"tokens_BT": (whole, np.int32), "segments_BT": (whole, np.int32), "valid_BT": (whole, np.bool_)}

    def framed(self, parts: Sequence[Part]) -> Rows:
        """Rows of these tokens.

        Returns:
            tokens_BT, segments_BT: int32; padding and 0 after the last token.
            valid_BT: bool: not padding.
            All other arrays of `shapes` are zeros.
        """
        rows = zeros(self.shapes(len(parts)))
        rows["tokens_BT"][:] = self.tokenizer.pad_id or 0
        for row, (encoding, kept) in enumerate(parts):
            rows["tokens_BT"][row, : len(kept)] = encoding.ids[kept]
            rows["segments_BT"][row, : len(kept)] = encoding.segments[kept]
            rows["valid_BT"][row, : len(kept)] = True
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceRows(FramedRows):
    """A row an example: one text or a pair of them, and its class, classes or number.

    What does not fit into a row is cut off at the end; of a pair, from the longer text.
    """

    name: ClassVar[str] = "sequence_rows"
    cut_by: ClassVar[str] = "data.length"
    row_per_document: ClassVar[bool] = True

    texts: tuple[str, ...]
    """The field with the text, or the two fields with the texts."""
    label: str
    """The field with a class, several of them (by number or by name), or a number."""
    problem: Problem | None
    """None: one class each."""
    labels: tuple[str, ...]
    """The names of the classes."""
    separator: str | None = None
    """What separates several classes in a text. None: they are a list."""
    by_index: bool | None = None
    """A number that is no text is the index of a class, even where names are numbers. None: no; older versions saved no
    such setting."""

    @property
    def texts_in_row(self) -> int:
        """One for each field."""
        return len(self.texts)

    def shapes(self, batch: int) -> Shapes:
        """Those of `framed`, and the targets.

        Raises:
            ValueError: there may be several classes, and their number is unknown.
        """
        if self.problem == "multi_label_classification":
            if not self.labels:
                raise ValueError("objective.labels is empty: name the classes of which an example may have several")
            return super().shapes(batch) | {"targets_BC": ((batch, len(self.labels)), np.float32)}
        dtype = np.float32 if self.problem == "regression" else np.int32
        return super().shapes(batch) | {"targets_B": ((batch,), dtype)}

    def __call__(self, examples: list[Example], rng: np.random.Generator) -> Rows:
        """As `framed`, and:

        targets_B: the class, int32; or the number, float32; or
        targets_BC: float32: 1 for each class of the example.

        Raises:
            ValueError: an example without these fields, or an unknown label.
        """
        encodings = self._encoded(examples)
        rows = self.framed([(encoding, shortened(encoding, self.length)) for encoding in encodings])
        index_of = lambda value: class_of(value, self.labels, self.label, self.by_index)
        for row, value in enumerate(field_of(example, self.label) for example in examples):
            if self.problem == "multi_label_classification":
                several = labels_in(value, self.separator, self.label)
                rows["targets_BC"][row, [index_of(one) for one in several]] = 1
            elif self.problem == "regression":
                rows["targets_B"][row] = number_of(value, self.label)
            else:
                rows["targets_B"][row] = index_of(value)
        return rows

    def cut(self, documents: list[Example]) -> tuple[int, int]:
        """Those that are longer than a row."""
        return sum(len(encoding) > self.length for encoding in self._encoded(documents)), 0

    def _encoded(self, examples: list[Example]) -> list[Encoding]:
        columns = [[field_of(example, name) for example in examples] for name in self.texts]
        return self.tokenizer.encode_batch(*columns, template=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows(FramedRows):
    """Rows of a text, as many as it takes, and the classes of the spans in it. Each token is in one row."""

    name: ClassVar[str] = "token_rows"

    text: str
    """The field with the text, or a list of words."""
    spans: str
    """The field with, for a text, the `start`, `end` (characters) and `label` of each span; for words, a label each."""
    subwords: Literal["first", "all"]
    """Which tokens of a span are labelled."""
    labels: tuple[str, ...]
    """The names of the classes."""
    by_index: bool | None = None
    """As in `SequenceRows`."""
    texts_in_row: ClassVar[int] = 1

    def shapes(self, batch: int) -> Shapes:
        """Those of `framed`, the targets, and which tokens have one."""
        whole = (batch, self.length)
        return super().shapes(batch) | {"targets_BT": (whole, np.int32), "judged_BT": (whole, np.bool_)}

    def __call__(self, examples: list[Example], rng: np.random.Generator) -> Rows:
        """As `framed`, and:

        targets_BT: int32: the class of a token's span.
        judged_BT: bool: the token is labelled. One that reaches over several spans has the label of the first.

        Raises:
            ValueError: an example without these fields, or an unknown label.
        """
        read = lambda e: spans_in(field_of(e, self.text), field_of(e, self.spans), self.spans)
        texts, *all_spans = zip(*map(read, examples))
        index_of = lambda value: class_of(value, self.labels, self.spans, self.by_index)
        parts, targets, judged = [], [], []
        for content, starts, ends, names, encoding in zip(
            texts, *all_spans, self.tokenizer.encode_batch(texts, template=True)
        ):
            classes = np.array([index_of(name) for name in names], np.int32)
            owners = span_of_tokens(len(content), encoding, starts, ends)
            labelled = owners >= 0
            if self.subwords == "first":
                new = np.ones(labelled.sum(), bool)
                new[1:] = np.diff(owners[labelled]) != 0
                labelled[labelled] = new
            of_tokens = np.where(labelled, np.append(classes, 0)[owners], 0)
            for kept in windows(encoding, 0, self.length):
                parts.append((encoding, kept))
                targets.append(of_tokens[kept])
                judged.append(labelled[kept])
        rows = self.framed(parts)
        _fill(rows["targets_BT"], targets)
        _fill(rows["judged_BT"], judged)
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerRows(FramedRows):
    """Rows of a question and its context, several of them for a long context, and the spans of the answers."""

    name: ClassVar[str] = "answer_rows"
    cut_by: ClassVar[str] = "objective.question_length"

    question: str
    """The field with the question."""
    context: str
    """The field with the context."""
    answers: str
    """The field with the answers, as in SQuAD: lists of `text` and `answer_start`."""
    question_length: int
    """Tokens of a question, at most; the rest is cut off."""
    overlap: int
    """Tokens of the context that consecutive rows have in common."""
    texts_in_row: ClassVar[int] = 2

    def check(self, tokenizer: Tokenizer) -> None:
        """There is room for a question, and for more of the context than rows have in common."""
        self._check_question(tokenizer, 1)

    def _check_question(self, tokenizer: Tokenizer, size: int) -> None:
        """Raises ValueError if a question of this many tokens leaves no room for its context."""
        frame = self.frame(tokenizer)
        if self.length < (least := frame + size + self.overlap + 1):
            raise ValueError(
                f"data.length={self.length} leaves no room for the context of a question of {size} tokens: {frame} are "
                f"the frame of a row, and objective.overlap={self.overlap} are those of the row before: set "
                f"data.length to at least {least}, or objective.question_length or objective.overlap lower"
            )

    def shapes(self, batch: int) -> Shapes:
        """Those of `framed`, where an answer may be, and the answers."""
        answers = (batch, ANSWERS)
        return super().shapes(batch) | {
            "allowed_BT": ((batch, self.length), np.bool_),
            "starts_BA": (answers, np.int32),
            "ends_BA": (answers, np.int32),
            "answers_BA": (answers, np.bool_),
        }

    def __call__(self, examples: list[Example], rng: np.random.Generator) -> Rows:
        """As `framed`, and:

        allowed_BT: bool: an answer may begin and end here: in the context, or at the first token, which stands for no
            answer in this row.
        starts_BA, ends_BA: int32: first and last token of each answer that the row holds whole. A row without any has
            one answer, the first token.
        answers_BA: bool: there is such an answer.

        Raises:
            ValueError: an example without these fields, or an answer that is not at its `answer_start`.
        """
        questions, contexts = ([field_of(e, name) for e in examples] for name in (self.question, self.context))
        encodings = self.tokenizer.encode_batch(questions, contexts, template=True)
        parts, allowed, spans = [], [], []
        for example, context, encoding in zip(examples, contexts, encodings):
            answers = answers_in(context, field_of(example, self.answers), self.answers)
            of_question = np.cumsum(encoding.texts == 0)
            wanted = (encoding.texts != 0) | (of_question <= self.question_length)
            for kept in windows(encoding, 1, self.length, self.overlap, wanted):
                inside = encoding.texts[kept] == 1
                parts.append((encoding, kept))
                allowed.append(inside | (np.arange(len(kept)) == 0))
                offsets = np.where(inside[:, None], encoding.offsets[kept], -1)
                found = [span for answer in answers if (span := _tokens_of(offsets, *answer)) is not None]
                spans.append(np.array(list(dict.fromkeys(found))[:ANSWERS] or [(0, 0)]))
        rows = self.framed(parts)
        _fill(rows["allowed_BT"], allowed)
        for name, column in (("starts_BA", 0), ("ends_BA", 1)):
            _fill(rows[name], [span[:, column] for span in spans])
        _fill(rows["answers_BA"], [np.ones(len(span), bool) for span in spans])
        return rows

    def cut(self, documents: list[Example]) -> tuple[int, int]:
        """Those whose question is longer than `question_length`; of contexts, nothing is lost.

        Raises:
            ValueError: a question leaves no room for its context.
        """
        questions = self.tokenizer.encode_batch([field_of(example, self.question) for example in documents])
        sizes = np.array([*map(len, questions)])
        self._check_question(self.tokenizer, min(sizes.max(initial=1), self.question_length))
        return int((sizes > self.question_length).sum()), 0


def span_of_tokens(size: int, encoding: Encoding, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int32[tokens]: the first span that has a character in common with the token; -1 if there is none.

    Args:
        size: characters of the text.
        starts, ends: int[spans], of spans that do not overlap: first character, and one past the last.
    """
    owner = np.full(size + 1, -1, np.int32)
    for number, (start, end) in enumerate(zip(starts, ends)):
        owner[start:end] = number
    # The nearest character at or after each that is in a span; the one past the text is in none.
    at = np.where(owner >= 0, np.arange(size + 1), size)
    at = np.minimum.accumulate(at[::-1])[::-1]
    first, last = encoding.offsets.T
    nearest = at[first]
    return np.where(nearest < last, owner[nearest], -1)


# Fields


def spans_in(text: Any, spans: Any, field: str) -> tuple[str, np.ndarray, np.ndarray, list[Any]]:
    """A text, and starts, ends and labels of its spans. Words become a text with a space between them.

    Args:
        text: a text, or a list of words.
        spans: of a text, lists under `start`, `end` and `label`, or a list of objects with these; of words, a label
            each.
        field: the field of the spans, with which an error begins.

    Raises:
        ValueError: neither, another number of labels than of spans, or a span outside of the text.
    """
    if isinstance(text, str):
        if isinstance(spans, list):  # an object for each
            spans = {name: [_member(span, name, field) for span in spans] for name in ("start", "end", "label")}
        starts, ends, names = (_member(spans, name, field) for name in ("start", "end", "label"))
    elif isinstance(text, list | tuple | np.ndarray) and all(isinstance(word, str) for word in text):
        names = spans
        ends = np.cumsum([len(word) + 1 for word in text]) - 1
        starts = ends - [len(word) for word in text]
        text = " ".join(text)
    else:
        raise ValueError(f"{field} are the labels of {json_files.excerpt(repr(text))}, which is no text and no words")
    if isinstance(names, str) or not all(hasattr(values, "__len__") for values in (starts, ends, names)):
        raise ValueError(
            f"{field} is {json_files.excerpt(repr(spans))}, where a list of labels is expected, or the start, end and "
            "label of spans"
        )
    if not len(starts) == len(ends) == len(names):
        raise ValueError(f"{field}: {len(starts)} spans begin, {len(ends)} end, and there are {len(names)} labels")
    starts, ends = np.array(starts, np.int32), np.array(ends, np.int32)
    if (starts < 0).any() or (ends > len(text)).any():
        raise ValueError(f"{field}: a span lies outside of its text of {len(text)} characters")
    return text, starts, ends, names.tolist() if isinstance(names, np.ndarray) else list(names)


def answers_in(context: str, answers: Any, field: str) -> list[tuple[int, int]]:
    """First character, and one past the last, of each answer in its context.

    Raises:
        ValueError: no such lists, or an answer that is not at its place; the message begins with the field.
    """
    texts, starts = (_member(answers, name, field) for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise ValueError(f"{field}: {len(texts)} answers, and {len(starts)} places where they start")
    for text, start in zip(texts, starts):
        if context[start : start + len(text)] != text:
            raise ValueError(f"{field}: {text!r} does not stand at character {start} of its context")
    return [(int(start), int(start) + len(text)) for text, start in zip(texts, starts)]


def _member(value: Any, name: str, field: str) -> Any:
    """An entry of a value that is an object."""
    if not isinstance(value, dict) or name not in value:
        has = f"it has {', '.join(value)}" if isinstance(value, dict) else json_files.excerpt(repr(value))
        raise ValueError(f"{field} has no field {name!r}: {has}")
    return value[name]


def _tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and last of the tokens that have a character of the span; None unless the tokens hold all of it."""
    first, last = offsets.T
    touched = np.flatnonzero((first < end) & (last > start) & (first < last))
    if not len(touched) or first[touched[0]] > start or last[touched[-1]] < end:
        return None
    return int(touched[0]), int(touched[-1])


# Rows


def shortened(encoding: Encoding, length: int) -> np.ndarray:
    """The positions of the tokens that are kept: what is too much is cut off the end of the longer text."""
    members = [encoding.texts == text for text in (0, 1)]
    sizes = [int(member.sum()) for member in members]
    room = length - (len(encoding) - sum(sizes))
    _check_room(room, length)
    first = min(sizes[0], max(room - sizes[1], (room + 1) // 2))
    kept = encoding.texts < 0
    for member, size in zip(members, (first, room - first)):
        kept |= member & (np.cumsum(member) <= size)
    return np.flatnonzero(kept)


def windows(
    encoding: Encoding, text: int, length: int, overlap: int = 0, wanted: np.ndarray | bool = True
) -> Iterator[np.ndarray]:
    """The positions of each row's tokens: a piece of one of the texts, and all other tokens that are wanted."""
    cut = encoding.texts == text
    always, pieces = ~cut & wanted, np.flatnonzero(cut)
    room = length - int(always.sum())
    _check_room(room - overlap, length)
    for start in range(0, max(len(pieces) - overlap, 1), room - overlap):
        kept = always.copy()
        kept[pieces[start : start + room]] = True
        yield np.flatnonzero(kept)


def _check_room(room: int, length: int) -> None:
    if room < 1:
        raise ValueError(
            f"rows of {length} tokens leave no room for text besides its frame and the overlap of rows: "
            "set data.length higher"
        )


def _fill(rows: np.ndarray, values: Sequence[np.ndarray]) -> None:
    """Writes each of these arrays to the beginning of a row."""
    for row, array in zip(rows, values, strict=True):
        row[: len(array)] = array
