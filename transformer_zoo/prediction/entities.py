"""The classes of the tokens of a text, joined to entities."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import numpy as np

from transformer_zoo import json_files, trees
from transformer_zoo.data.encoding import Encoding
from transformer_zoo.prediction.reader import (
    Example,
    Input,
    Outputs,
    RowReader,
    check_overlap,
    encode,
    row,
    softmax,
    windows_of,
)  # fmt: skip
from transformer_zoo.prediction.sequences import read

OVERLAP = 32  # tokens, by default
Aggregation = Literal["none", "simple", "first", "average", "max"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entities(RowReader):
    """`token-classification`: the entities in a `text`.

    Result: a list with, for each entity, `entity_group`, its class without B- and I-; `score`, the mean probability of
    its parts; `word`, its text as the tokenizer writes it; `start`, `end`, its first character in the text and the one
    past its last. With aggregation "none", for each token: `entity`, the class; `score`, its probability; `index`, the
    token's index among all tokens of the text; `word`, the token; `start`, `end`.
    """

    aggregation: Aggregation = "simple"
    """How tokens are joined. none: they are not. simple: consecutive tokens of one class, save where a B- begins the
    next entity. The others first give the tokens of a word one class: that of the first token, of the mean of the
    probabilities, or of the token with the highest probability."""
    ignored: tuple[str, ...] = ("O",)
    """Classes that are left out."""
    overlap: int | None = None
    """Tokens that consecutive rows of a long text have in common. None: 32, or half of a short row."""

    required = ("text",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation not in get_args(Aggregation):
            raise ValueError(f"aggregation is {self.aggregation!r}: choose one of {', '.join(get_args(Aggregation))}")
        check_overlap(self.overlap)

    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        known = dict.fromkeys(["O", *m.config.labels, *map(_group, m.config.labels)])
        for name in self.ignored:
            if name not in known:
                classes, hint = json_files.excerpt(", ".join(m.config.labels), 300), trees.nearest(name, known)
                raise ValueError(f"ignored: the model has no class {name!r}: it has {classes}.{hint}")
        texts, length = [i.fields["text"] for i in inputs], self.length(m)
        found = []
        for one, encoding in zip(inputs, encode(m, texts, [None] * len(texts))):
            kept = windows_of(one, encoding, 0, length, self.overlap, OVERLAP)
            found.append(Example(one, [row(encoding, some) for some in kept], (encoding, kept)))
        return found

    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits_BTC": read(model, params, batch).logits}

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> list[dict[str, Any]]:
        text, (encoding, windows_) = example.input.fields["text"], example.about
        labels, found, raw = m.config.labels, [], {}
        for kept, output in zip(windows_, outputs):
            tokens = _tokens(m.tokenizer, text, encoding, kept, softmax(output["logits_BTC"]))
            if self.aggregation in ("none", "simple"):
                parts = [_part([token], token.scores) for token in tokens]
            else:
                parts = [_part(word, _scores(word, self.aggregation)) for word in _grouped(tokens)]
            if self.aggregation == "none":  # a token of two rows is what the surer one says
                for part in parts:
                    index = part.tokens[0].index
                    raw[index] = max(raw.get(index, part), part, key=lambda part: part.score)
            else:
                found += [_joined(m.tokenizer, text, labels, group) for group in _groups(labels, parts)]
        found += [_raw(m.tokenizer, text, labels, raw[index]) for index in sorted(raw)]
        kind = "entity" if self.aggregation == "none" else "entity_group"
        found = [entity for entity in found if entity[kind] not in self.ignored]
        return found if len(outputs) == 1 or raw else _without_overlaps(found)


@dataclasses.dataclass(frozen=True)
class _Token:
    id: int
    index: int
    start: int
    end: int
    scores: np.ndarray
    unknown: bool
    continues: bool
    """It is not the first token of its word."""


@dataclasses.dataclass(frozen=True)
class _Part:
    """A token or a word with its class."""

    tokens: list[_Token]
    label: int
    score: float


def _tokens(
    tokenizer: Any, text: str, encoding: Encoding, kept: np.ndarray, scores_TC: np.ndarray
) -> list[_Token]:  # fmt: skip
    """The tokens of a row that are of the text."""
    found = []
    for i, scores_C in zip(kept, scores_TC, strict=True):
        if encoding.texts[i] < 0:
            continue
        token, (start, end) = int(encoding.ids[i]), map(int, encoding.offsets[i])
        if tokenizer.kind == "wordpiece":
            continues = len(tokenizer.tokens([token])[0]) != end - start
        else:
            continues = start > 0 and " " not in text[start - 1 : start + 1]
        unknown = token == tokenizer.unk_id
        found.append(_Token(token, int(i), start, end, scores_C, unknown, continues and not unknown))
    return found


def _grouped(tokens: list[_Token]) -> list[list[_Token]]:
    """The tokens of each word."""
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.continues:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _scores(word: list[_Token], aggregation: str) -> np.ndarray:
    """The probabilities of a word's classes."""
    if aggregation == "average":
        return np.mean([token.scores for token in word], axis=0)
    return (word[0] if aggregation == "first" else max(word, key=lambda token: token.scores.max())).scores


def _part(tokens: list[_Token], scores_C: np.ndarray) -> _Part:
    label = int(scores_C.argmax())
    return _Part(tokens, label, float(scores_C[label]))


def _raw(tokenizer: Any, text: str, labels: Sequence[str], part: _Part) -> dict[str, Any]:
    (token,) = part.tokens
    word = text[token.start : token.end] if token.unknown else tokenizer.tokens([token.id])[0]
    return {
        "entity": labels[part.label], "score": part.score, "index": token.index, "word": word,
        "start": token.start, "end": token.end,
    }  # fmt: skip


def _groups(labels: Sequence[str], parts: list[_Part]) -> list[list[_Part]]:
    """Consecutive parts of one class; a part that begins an entity (B-) begins a group."""
    groups: list[list[_Part]] = []
    for part in parts:
        label = labels[part.label]
        if groups and not label.startswith("B-") and _kind(label) == _kind(labels[groups[-1][-1].label]):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _kind(label: str) -> str:
    """A class without B- and I-."""
    return label[2:] if label.startswith(("B-", "I-")) else label


def _group(label: str) -> str:
    """What an entity of a class is called."""
    return label.split("-", 1)[-1]


def _joined(tokenizer: Any, text: str, labels: Sequence[str], group: list[_Part]) -> dict[str, Any]:
    tokens = [token for part in group for token in part.tokens]
    return {
        "entity_group": _group(labels[group[0].label]),
        "score": float(np.mean([part.score for part in group])),
        "word": _word(tokenizer, text, tokens), "start": tokens[0].start, "end": tokens[-1].end,
    }  # fmt: skip


def _word(tokenizer: Any, text: str, tokens: list[_Token]) -> str:
    """The text of tokens, with the characters of the text in the place of unknown tokens."""
    written = tokenizer.decode([token.id for token in tokens], special=True)
    unknown = [text[token.start : token.end] for token in tokens if token.unknown]
    if not unknown:
        return written
    first, *rest = written.split(tokenizer.tokens([tokenizer.unk_id])[0])
    return first + "".join(word + after for word, after in zip(unknown, rest))


def _without_overlaps(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of entities that begin in one another, the longest, or else the one with the highest score."""
    found: list[dict[str, Any]] = []
    size = lambda entity: (entity["end"] - entity["start"], entity["score"])
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if found and entity["start"] < found[-1]["end"]:
            found[-1] = max(found[-1], entity, key=size)
        else:
            found.append(entity)
    return found
