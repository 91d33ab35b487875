"""Rows for masked language models: some of the tokens are hidden, and are to be predicted.

The hidden positions follow from the documents and the group's generator of random numbers; where masks are static, from
the row alone. Text is an array int32[n, 2]: tokens, and the words that they are parts of. A word is a stretch of equal
numbers; -1 stands for no word, such as a special token, and is never hidden.
"""

import abc
import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_zoo.data.documents import text_in
from transformer_zoo.data.packing import Packing
from transformer_zoo.data.rows import RowMaker, Rows, Shapes, zeros
from transformer_zoo.data.tokenizers import ROLES, Encoding, Tokenizer

Unit = Literal["tokens", "words", "spans"]

# Of spans of 1 to 10 words: geometric with p = 0.2, 3.8 on average (Joshi et al. 2020, section 3.1).
SPAN_LENGTHS = 0.8 ** np.arange(10) / np.sum(0.8 ** np.arange(10))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Masking(RowMaker, abc.ABC):
    """Rows of framed text with some of the tokens hidden (Devlin et al. 2019, section 3.1). A subclass frames it.

    Raises:
        ValueError: rows that hold little more than their frame; as `RowMaker`.
    """

    frame: ClassVar[int]
    """Special tokens that frame a row."""

    rate: float
    """Share of a row's tokens, not counting special ones, that are to be predicted."""
    unit: Unit
    """What is chosen: single tokens; whole words; spans of words, whose tokens are all replaced in the same way."""
    static: bool
    """A row of the same tokens always gets the same masks."""
    mask_share: float
    """Of the tokens to predict, the share that become the mask token."""
    random_share: float
    """Of the tokens to predict, the share that become any ordinary token. The rest stay as they are."""

    def __post_init__(self) -> None:
        if self.length < self.frame + 2:
            raise ValueError(f"data.length={self.length}: {self.frame} tokens frame a row, so it needs more")
        super().__post_init__()

    def check(self, tokenizer: Tokenizer) -> None:
        """There are a mask and the tokens of the frame."""
        missing = [role for role in ("cls", "sep", "mask") if getattr(tokenizer, f"{role}_id") is None]
        if missing:
            raise ValueError(
                f"the tokenizer has no special token for {', '.join(missing)}: take one that was made for a masked "
                "language model, such as vocabulary.kind=wordpiece or roberta"
            )

    @property
    def room(self) -> int:
        """Tokens of text in a row."""
        return self.length - self.frame

    def shapes(self, batch: int) -> Shapes:
        """The arrays of `mask`, with P the number of predictions in a full row."""
        whole, masked = (batch, self.length), (batch, predictions(self.room, self.rate))
        return {
            "tokens_BT": (whole, np.int32),
            "valid_BT": (whole, np.bool_),
            "masked_BP": (masked, np.int32),
            "targets_BP": (masked, np.int32),
            "weights_BP": (masked, np.float32),
        }

    def mask(self, texts: Sequence[np.ndarray], rng: np.random.Generator) -> Rows:
        """Framed texts as rows of one length, with some of their tokens hidden.

        Returns:
            tokens_BT: int32: what the model reads; padding at the end.
            valid_BT: bool: not padding.
            masked_BP: int32: positions of the hidden tokens, in order; 0 after the last of them.
            targets_BP: int32: the tokens that are hidden there; 0 after the last.
            weights_BP: float32: 1 for each of them, 0 after the last.
            All other arrays of `shapes` are zeros.
        """
        tokenizer, rows = self.tokenizer, zeros(self.shapes(len(texts)))
        ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int32), special_ids(tokenizer))
        rows["tokens_BT"][:] = tokenizer.pad_id or 0
        for row, text in enumerate(texts):
            draw = np.random.default_rng(_digest(text)) if self.static else rng
            tokens, words = text.T
            chosen = choose(words, predictions((words >= 0).sum(), self.rate), self.unit, draw)
            where = np.concatenate([*chosen, np.empty(0, int)])
            # All tokens of a span are replaced alike; those of a word, each by itself.
            sizes = [len(part) for part in chosen] if self.unit == "spans" else np.ones(len(where), int)
            fate = np.repeat(draw.random(len(sizes)), sizes)
            fates = fate < self.mask_share, fate < self.mask_share + self.random_share
            read = np.select(fates, (tokenizer.mask_id, draw.choice(ordinary, len(where))), tokens[where])
            order = np.argsort(where)
            rows["tokens_BT"][row, : len(text)] = tokens
            rows["tokens_BT"][row, where] = read
            rows["valid_BT"][row, : len(text)] = True
            rows["masked_BP"][row, : len(where)] = where[order]
            rows["targets_BP"][row, : len(where)] = tokens[where[order]]
            rows["weights_BP"][row, : len(where)] = 1
        return rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedRows(Masking):
    """Rows of one text each, [CLS] text [SEP] (Liu et al. 2019, section 4.2)."""

    name: ClassVar[str] = "masked_rows"
    frame: ClassVar[int] = 2

    packing: Packing
    """documents: each document by itself, cut into rows that it fills, all but the last (DOC-SENTENCES); concat:
    documents joined with a separator between them, cut into rows (FULL-SENTENCES)."""

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """As `mask`."""
        texts, cls, sep = (
            encode(documents, self.tokenizer),
            special(self.tokenizer.cls_id),
            special(self.tokenizer.sep_id),
        )
        if self.packing == "concat" and texts:
            texts = [np.concatenate([part for text in texts for part in (text, sep)][:-1])]
        parts = [text[at : at + self.room] for text in texts for at in range(0, len(text), self.room)]
        return self.mask([np.concatenate([cls, part, sep]) for part in parts], rng)


def encode(documents: list[dict[str, Any]], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The text of each document that has some."""
    found = tokenizer.encode_batch([text_in(document, "text") for document in documents])
    return [text_of(encoding, tokenizer) for encoding in found if len(encoding)]


def text_of(encoding: Encoding, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens and their words. Special tokens among them, such as the unknown one, are no words."""
    words = np.where(np.isin(encoding.ids, special_ids(tokenizer)), -1, encoding.words)
    return np.stack([encoding.ids, words], axis=1).astype(np.int32)


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that have a role rather than a meaning."""
    ids = (getattr(tokenizer, f"{role}_id") for role in ROLES)
    return sorted({i for i in ids if i is not None})


def special(token: int) -> np.ndarray:
    """A special token as text."""
    return np.array([[token, -1]], np.int32)


def predictions(tokens: int, rate: float) -> int:
    """How many of this number of tokens are predicted: at least one."""
    return max(1, int(rate * tokens + 0.5))


def choose(words: np.ndarray, budget: int, unit: Unit, rng: np.random.Generator) -> list[np.ndarray]:
    """The positions of the tokens to predict: as many as the budget or, if no further word fits into it, fewer.

    Args:
        words: int[n], the word of each token; -1: never.

    Returns:
        The positions in the text of each token, word or span that was chosen.
    """
    maskable = np.flatnonzero(words >= 0)
    if unit == "tokens":
        return list(rng.permutation(maskable)[:budget, None])
    begins = np.flatnonzero((np.diff(words[maskable]) != 0) | (np.diff(maskable) != 1)) + 1
    parts = np.split(maskable, begins)
    return (_spans if unit == "spans" else _whole_words)(parts, budget, rng)


def _whole_words(words: list[np.ndarray], budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Words in random order, without those that no longer fit into the budget."""
    chosen = []
    for word in rng.permutation(len(words)):
        if len(words[word]) <= budget:
            chosen.append(words[word])
            budget -= len(words[word])
        if not budget:
            break
    return chosen


def _spans(words: list[np.ndarray], budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Spans of words that do not overlap; the last is cut to the whole words that fit into the budget.

    A length is drawn first, and then a position among all that are free for it, so that position does not bias length.
    """
    chosen, free = [], np.ones(len(words), bool)
    while budget and free.any():
        size = min(1 + rng.choice(len(SPAN_LENGTHS), p=SPAN_LENGTHS), len(words))
        while not len(starts := np.flatnonzero(np.convolve(free, np.ones(size), "valid") == size)):
            size -= 1
        start = rng.choice(starts)
        ends = np.cumsum([len(word) for word in words[start : start + size]])
        size = np.searchsorted(ends, budget, side="right")
        if not size:
            break
        free[start : start + size] = False
        chosen.append(np.concatenate(words[start : start + size]))
        budget -= ends[size - 1]
    return chosen


def _digest(text: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(text[:, 0].astype("<i4").tobytes(), digest_size=16).digest(), "big")
