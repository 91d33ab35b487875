"""A text as tokens, and the base of tokenizers that segment one text at a time."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, models, normalizers

Tokens = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of one text: ids, int32[n]; offsets, int32[n, 2]; words, int32[n]."""

BETWEEN = "\0"
"""The name, where whole tokens are looked for, of the text between them."""

LANGUAGE = -1
"""Stands in a frame where the token of the text's language goes."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Encoding:
    """A text, or a pair of texts, as tokens."""

    ids: np.ndarray
    """int32[n]: the tokens."""
    offsets: np.ndarray
    """int32[n, 2]: the characters of the text, first and one past the last, that each token stands for. Tokens that
    share a character, as the bytes of an emoji do, all have its span; what a template adds has an empty one."""
    texts: np.ndarray
    """int32[n]: which text a token is of, 0 or 1; -1 for what a template adds."""
    segments: np.ndarray
    """int32[n]: the segment as the template numbers it for the model: all 0 without one, or where it knows none."""
    words: np.ndarray
    """int32[n]: the token's word, from 0 in each text; -1 where there is none. Whitespace and, save in sentencepiece's
    models, punctuation divide words."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """The tokens that a template puts around one text or two."""

    first: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    last: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    """Behind all of these, in segment 2."""
    segments: bool = False
    """Whether the second text and what ends it are a segment of their own."""

    def of(self, language: int | None) -> "Frame":
        """The frame of a text in a language; None: without a token of a language."""
        fill = lambda ids: tuple(language if i == LANGUAGE else i for i in ids if i != LANGUAGE or language is not None)
        return dataclasses.replace(self, first=fill(self.first), last=fill(self.last))

    def around(self, *texts: Tokens) -> Encoding:
        """One or two texts, framed, one behind the other."""
        columns: list[list[np.ndarray]] = [[], [], [], [], []]

        def add(tokens: Tokens, text: int, segment: int) -> None:
            n = len(tokens[0])
            for column, values in zip(columns, (*tokens, np.full(n, text), np.full(n, segment))):
                column.append(np.asarray(values, np.int32))

        def add_frame(ids: tuple[int, ...], segment: int) -> None:
            add((np.array(ids), np.zeros((len(ids), 2)), np.full(len(ids), -1)), -1, segment)

        add_frame(self.first, 0)
        for number, tokens in enumerate(texts):
            if number:
                add_frame(self.between, 0)
            add(tokens, number, number * self.segments)
        add_frame(self.last, (len(texts) - 1) * self.segments)
        add_frame(self.closing, 2)
        ids, offsets, words, numbers, segments = (np.concatenate(column) for column in columns)
        return Encoding(ids=ids, offsets=offsets, texts=numbers, segments=segments, words=words)


class Cutter:
    """A tokenizer that segments one text at a time. A subclass defines how.

    Args:
        tokens: the tokens that are whole wherever a text spells them out, by id.
        frame: the tokens that a template adds; None: unknown.
        languages: codes of languages, and the ids of their tokens.
        language: the default language of a text.
        normalizer: how a text is rewritten before tokens that are `normalized` are looked for in it.
    """

    targets: "Cutter | None" = None
    """The tokenizer of targets; None: the same as that of sources."""

    def __init__(
        self,
        tokens: Mapping[int, AddedToken],
        frame: Frame | None = None,
        languages: Mapping[str, int] | None = None,
        language: str | None = None,
        normalizer: normalizers.Normalizer | None = None,
    ) -> None:
        self.whole = {token.content: i for i, token in tokens.items()}
        self.special = {token.content: i for i, token in tokens.items() if token.special}
        self.frame, self.languages, self.language = frame, dict(languages or {}), language
        self.tokens, self._normalizer = dict(tokens), normalizer

    @property
    def has_template(self) -> bool:
        return self.frame is not None

    def cut(self, text: str) -> Tokens:
        """The tokens of a text in which none is whole."""
        raise NotImplementedError

    def encode(
        self,
        texts: list[str],
        pairs: list[str] | None,
        special: bool,
        template: bool,
        target: bool,
        language: str | None,
    ) -> list[Encoding]:
        if target and self.targets is not None:
            return self.targets.encode(texts, pairs, special, template, False, None)
        if template and not self.has_template:
            raise ValueError("a sentencepiece model does not define a frame: add bos_id and eos_id yourself")
        frame = self.frame.of(self.languages.get(language or self.language)) if template else Frame()
        groups = (texts,) if pairs is None else (texts, pairs)
        return [frame.around(*parts) for parts in zip(*(self._cut_all(group, special) for group in groups))]

    @functools.cached_property
    def _splitters(self) -> tuple[tuple[Tokenizer, Tokenizer], np.ndarray]:
        """What finds whole tokens in a text, without the special ones and with them; and the ids of what it finds: 0
        stands for the text between them."""
        splitters = []
        for special in (False, True):
            splitter = Tokenizer(models.WordLevel({BETWEEN: 0}, unk_token=BETWEEN))
            if self._normalizer is not None:
                splitter.normalizer = self._normalizer
            splitter.add_tokens(list(self.tokens.values()))
            splitter.encode_special_tokens = not special
            splitters.append(splitter)
        places = splitters[0].get_vocab()
        ids = np.zeros(len(places), np.int32)
        for content, i in self.whole.items():
            ids[places[content]] = i
        return tuple(splitters), ids

    def _cut_all(self, texts: list[str], special: bool) -> list[Tokens]:
        """The tokens of each text, and of those that are whole too."""
        if not self.tokens:
            return [self.cut(text) for text in texts]
        splitters, ids = self._splitters
        found = splitters[special].encode_batch(texts, add_special_tokens=False)
        return [self._cut_between(text, encoding, ids) for text, encoding in zip(texts, found)]

    def _cut_between(self, text: str, found: Any, ids: np.ndarray) -> Tokens:
        """The whole tokens that were found in a text, each a word, and between them each stretch of text by itself."""
        if not any(found.ids):
            return self.cut(text)
        parts, words = [], 0
        for place, (start, end) in zip(found.ids, found.offsets):
            part = one(int(ids[place]), end - start) if place else self.cut(text[start:end])
            parts.append((part[0], part[1] + start, part[2] + words))
            words += int(part[2].max(initial=-1)) + 1
        return joined(*parts)

    def encode_bytes(self, texts: list[str], special: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        encodings = (Frame().around(tokens) for tokens in self._cut_all(texts, special))
        return [(e.ids, bytes_by_offsets(text, e)) for text, e in zip(texts, encodings)]


def one(token: int, size: int) -> Tokens:
    """One token that stands for `size` characters."""
    return np.array([token], np.int32), np.array([[0, size]], np.int32), np.zeros(1, np.int32)


def joined(*parts: Tokens) -> Tokens:
    """Tokens one behind the other."""
    ids, offsets, words = (np.concatenate(column).astype(np.int32) for column in zip(*parts))
    return ids, offsets, words


def bytes_by_offsets(text: str, encoding: Encoding) -> np.ndarray:
    """int32[n]: UTF-8 bytes of the text up to each token's last character that no earlier token has reached."""
    bytes_before = np.concatenate([[0], np.cumsum(utf8_widths(text))])
    return np.diff(bytes_before[encoding.offsets[:, 1]], prepend=0).astype(np.int32)


def utf8_widths(text: str) -> np.ndarray:
    """int32[characters]: the bytes of each."""
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    return 1 + (codes >= 0x80).astype(np.int32) + (codes >= 0x800) + (codes >= 0x10000)
