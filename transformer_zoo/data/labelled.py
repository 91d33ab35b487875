"""Rows from labelled examples: what is to be said of a text, of its tokens, or where in it an answer stands.

Labels of tokens and answers are given by characters of the text, and find their tokens by the tokenizer's offsets.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transformer_zoo.data.packing import Rows
from transformer_zoo.data.tokenizers import Encoding, Tokenizer

ANSWERS = 6
"""Answers to a question that are kept: no more have been collected for any question of SQuAD."""

Example = dict[str, Any]


def sequence_rows(
    examples: list[Example],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    texts: Sequence[str],
    label: str,
    problem: str | None,
    labels: Sequence[str],
) -> Rows:
    """A row an example: one text or a pair of them, framed, and what is to be said of it.

    Too long a row loses its end; of a pair the longer text loses.

    Args:
        texts: the fields that hold the text, or both.
        label: the field that holds a class, several of them (by number or by name), or a number.
        problem: regression, multi_label_classification, or else one class each.
        labels: the names of the classes.

    Returns:
        tokens_BT, segments_BT: int32; 0 and the padding where there is nothing.
        valid_BT: bool: there is something.
        targets_B: the class, int32; or the number, float32; or targets_BC: float32, 1 for each class that it has.

    Raises:
        ValueError: an example without these fields, a label that is no class, or a row too short for any text.
    """
    columns = [[field_of(example, name) for example in examples] for name in texts]
    encodings = tokenizer.encode_batch(*columns, template=True)
    rows = _rows([(encoding, _shortened(encoding, length)) for encoding in encodings], tokenizer, length)
    values = [field_of(example, label) for example in examples]
    if problem == "regression":
        return rows | {"targets_B": np.array(values, np.float32)}
    if problem != "multi_label_classification":
        return rows | {"targets_B": np.array([_class(value, labels, label) for value in values], np.int32)}
    targets_BC = np.zeros((len(values), len(labels)), np.float32)
    for row, value in zip(targets_BC, values):
        row[[_class(one, labels, label) for one in value]] = 1
    return rows | {"targets_BC": targets_BC}


def token_rows(
    examples: list[Example],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    text: str,
    spans: str,
    subwords: str,
    labels: Sequence[str],
) -> Rows:
    """Rows of a text, as many as it takes, and the classes of the spans in it. Each token is in one row.

    Args:
        text: the field that holds the text, or a list of words.
        spans: the field that holds, for a text, `start`, `end` (characters) and `label` of each span; for words, a
            label each.
        subwords: which of a span's tokens bear its label: the `first`, or `all`.
        labels: the names of the classes.

    Returns:
        tokens_BT, segments_BT, valid_BT: as `sequence_rows`.
        targets_BT: int32: the class of a token's span.
        judged_BT: bool: a token bears a label. One that reaches over several spans has that of the first.

    Raises:
        ValueError: an example without these fields, a label that is no class, or a row too short for any text.
    """
    texts, all_spans = zip(*(_text_and_spans(field_of(e, text), field_of(e, spans), labels, spans) for e in examples))
    parts, marks = [], {"targets_BT": [], "judged_BT": []}
    for content, span, encoding in zip(texts, all_spans, tokenizer.encode_batch(texts, template=True)):
        owners = span_of_tokens(len(content), encoding, *span[:2])
        judged = owners >= 0
        if subwords == "first":
            new = np.ones(judged.sum(), bool)
            new[1:] = np.diff(owners[judged]) != 0
            judged[judged] = new
        targets = np.where(judged, np.append(span[2], 0)[owners], 0)
        for kept in _windows(encoding, 0, length):
            parts.append((encoding, kept))
            marks["targets_BT"].append(targets[kept])
            marks["judged_BT"].append(judged[kept])
    return _rows(parts, tokenizer, length) | {
        name: _stacked(marks[name], length, dtype) for name, dtype in (("targets_BT", np.int32), ("judged_BT", bool))
    }


def span_of_tokens(size: int, encoding: Encoding, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """int32[tokens]: the first span with a character in the token's; -1 where there is none.

    Args:
        size: characters of the text.
        starts, ends: int[spans], of spans that do not overlap: first character, and one past the last.
    """
    owner = np.full(size + 1, -1, np.int32)
    for number, (start, end) in enumerate(zip(starts, ends)):
        owner[start:end] = number
    # The nearest character at or after each that a span has; the one past the text is in none.
    at = np.where(owner >= 0, np.arange(size + 1), size)
    at = np.minimum.accumulate(at[::-1])[::-1]
    first, last = encoding.offsets.T
    nearest = at[first]
    return np.where(nearest < last, owner[nearest], -1)


def answer_rows(
    examples: list[Example],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    question: str,
    context: str,
    answers: str,
    question_length: int,
    overlap: int,
) -> Rows:
    """Rows of a question and its context, which a long context needs several of, and where the answers are.

    Args:
        question, context, answers: the fields, as in SQuAD: answers holds lists of `text` and `answer_start`.
        question_length: tokens of a question; the rest of it is left out.
        overlap: tokens of the context that a row and the next have in common.

    Returns:
        tokens_BT, segments_BT, valid_BT: as `sequence_rows`.
        allowed_BT: bool: where an answer may begin and end: in the context, or on the first token, for none in the row.
        starts_BA, ends_BA: int32: first and last token of each answer; those that the row does not hold whole are left
            out, and a row without any has one that is nothing: the first token.
        answers_BA: bool: there is such an answer.

    Raises:
        ValueError: an example without these fields, an answer that is not where it is said to be, or a row too short.
    """
    questions, contexts = ([field_of(example, name) for example in examples] for name in (question, context))
    parts, allowed, places = [], [], []
    for example, passage, encoding in zip(
        examples, contexts, tokenizer.encode_batch(questions, contexts, template=True)
    ):
        spans = list(_answers(passage, field_of(example, answers), answers))
        of_question = np.cumsum(encoding.texts == 0)
        wanted = (encoding.texts != 0) | (of_question <= question_length)
        for kept in _windows(encoding, 1, length, overlap, wanted):
            inside = encoding.texts[kept] == 1
            parts.append((encoding, kept))
            allowed.append(inside | (np.arange(len(kept)) == 0))
            offsets = np.where(inside[:, None], encoding.offsets[kept], -1)
            found = [place for span in spans if (place := _tokens_of(offsets, *span)) is not None]
            places.append(list(dict.fromkeys(found))[:ANSWERS] or [(0, 0)])
    rows = _rows(parts, tokenizer, length)
    rows["allowed_BT"] = _stacked(allowed, length, bool)
    for name, which in (("starts_BA", 0), ("ends_BA", 1)):
        rows[name] = _stacked([np.array(place)[:, which] for place in places], ANSWERS, np.int32)
    return rows | {"answers_BA": _stacked([np.ones(len(place), bool) for place in places], ANSWERS, bool)}


# Fields


def field_of(example: Example, name: str) -> Any:
    """What an example holds under this name."""
    if name not in example:
        raise ValueError(f"an example has no field {name!r}: it has {', '.join(example)}")
    return example[name]


def _class(value: Any, labels: Sequence[str], field: str) -> int:
    """A class by its name or number."""
    if isinstance(value, str) and value in labels:
        return list(labels).index(value)
    if isinstance(value, str) or not 0 <= value < len(labels):
        nothing = not isinstance(value, str) and value == -1
        hint = "that split has no labels" if nothing else "objective.labels can name them"
        raise ValueError(f"{field} {value!r} is none of the {len(labels)} classes {', '.join(labels)}: {hint}")
    return int(value)


def _text_and_spans(
    text: str | list[str], spans: Any, labels: Sequence[str], field: str
) -> tuple[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A text, and starts, ends, classes of its spans. Words become a text with a space between them."""
    if isinstance(text, str):
        starts, ends, names = (field_of(spans, name) for name in ("start", "end", "label"))
    else:
        names = spans
        ends = np.cumsum([len(word) + 1 for word in text]) - 1
        starts = ends - [len(word) for word in text]
        text = " ".join(text)
    if not len(starts) == len(ends) == len(names):
        raise ValueError(f"{field}: {len(starts)} spans begin, {len(ends)} end, and there are {len(names)} labels")
    starts, ends = np.array(starts, np.int32), np.array(ends, np.int32)
    if (starts < 0).any() or (ends > len(text)).any():
        raise ValueError(f"{field}: a span lies outside of its text of {len(text)} characters")
    return text, (starts, ends, np.array([_class(name, labels, field) for name in names], np.int32))


def _answers(context: str, answers: Any, field: str) -> Iterator[tuple[int, int]]:
    """First character, and one past the last, of each answer."""
    for text, start in zip(field_of(answers, "text"), field_of(answers, "answer_start"), strict=True):
        if context[start : start + len(text)] != text:
            raise ValueError(f"{field}: {text!r} does not stand at character {start} of its context")
        yield int(start), int(start) + len(text)


def _tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and last of the tokens that have a character of the span; None unless the tokens hold all of it."""
    first, last = offsets.T
    touched = np.flatnonzero((first < end) & (last > start) & (first < last))
    if not len(touched) or first[touched[0]] > start or last[touched[-1]] < end:
        return None
    return int(touched[0]), int(touched[-1])


# Rows


def _shortened(encoding: Encoding, length: int) -> np.ndarray:
    """The tokens that are kept, by their places: the longer text gives, from its end, what is too much."""
    members = [encoding.texts == text for text in (0, 1)]
    sizes = [int(member.sum()) for member in members]
    room = length - (len(encoding) - sum(sizes))
    _check_room(room, length)
    first = min(sizes[0], max(room - sizes[1], (room + 1) // 2))
    kept = encoding.texts < 0
    for member, size in zip(members, (first, room - first)):
        kept |= member & (np.cumsum(member) <= size)
    return np.flatnonzero(kept)


def _windows(
    encoding: Encoding, text: int, length: int, overlap: int = 0, wanted: np.ndarray | bool = True
) -> Iterator[np.ndarray]:
    """The tokens of each row, by their places: a piece of one of the texts, and all else that is wanted."""
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
            f"rows of {length} tokens leave no room for text beside what frames it and what rows have in common: "
            "set data.length higher"
        )


def _rows(parts: Sequence[tuple[Encoding, np.ndarray]], tokenizer: Tokenizer, length: int) -> Rows:
    """Rows of these tokens of these encodings."""
    return {
        "tokens_BT": _stacked([e.ids[kept] for e, kept in parts], length, np.int32, tokenizer.pad_id or 0),
        "segments_BT": _stacked([e.segments[kept] for e, kept in parts], length, np.int32),
        "valid_BT": _stacked([np.ones(len(kept), bool) for _, kept in parts], length, bool),
    }


def _stacked(arrays: Sequence[np.ndarray], length: int, dtype: Any, fill: int = 0) -> np.ndarray:
    """[arrays, length], each filled up at its end."""
    rows = np.full((len(arrays), length), fill, dtype)
    for row, array in zip(rows, arrays):
        row[: len(array)] = array
    return rows
