"""Pairs of a source and a target, side by side in rows, and the pairs that two fields of an example make.

An encoder-decoder reads a row of sources and, from left to right, a row of targets. The first source of a row and its
first target belong together, and so on: they have the same number, and attention never leads from one number to
another.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_zoo.data.documents import text_in
from transformer_zoo.data.rows import RowMaker, Rows, Shapes, pad, zeros
from transformer_zoo.data.tokenizers import Tokenizer

Pair = tuple[np.ndarray, np.ndarray]
"""Tokens of a source and of its target, int32[n] each, with all that frames them."""

TooLong = Literal["truncate", "drop", "refuse"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairMaker(RowMaker, abc.ABC):
    """Rows of pairs, packed by `pack_pairs`. `length` is that of a row of sources, S. A subclass makes the pairs."""

    target_length: int
    """Tokens in a row of targets, T."""
    start: int | None
    """Token that the decoder reads first."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Targets have a start and an end."""
        if tokenizer.eos_id is None:
            raise ValueError("the tokenizer has no end-of-text token (eos), so the end of a target cannot be predicted")
        if self.start is None:
            raise ValueError(
                "objective.start_id is not known: a run takes the model's decoder_start_id; the model has none, so set "
                "objective.start_id"
            )

    def shapes(self, batch: int) -> Shapes:
        """The arrays of `pack_pairs`."""
        return pair_shapes(batch, self.length, self.target_length)

    def pack(self, pairs: Sequence[Pair]) -> Rows:
        """As `pack_pairs`."""
        padding = self.tokenizer.pad_id or 0
        return pack_pairs(pairs, self.length, self.target_length, start=self.start, padding=padding)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairRows(PairMaker):
    """Rows of examples with a text to read and a text to write."""

    name: ClassVar[str] = "pair_rows"

    source: str
    """The field with the text to read."""
    target: str
    """The field with the text to write."""
    prefix: str
    """Put before each source, such as the name of the task."""
    languages: tuple[str | None, str | None]
    """Of the frames of sources and of targets; None: the tokenizer's own."""
    too_long: TooLong
    """What becomes of an example with a text that does not fit into a row: truncate: its end is cut off; drop: it is
    left out; refuse: an error."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Besides, there is room for text on both sides, and the languages are known."""
        super().check(tokenizer)
        room_in(self.length, *frame(tokenizer, language=self.languages[0]))
        room_in(self.target_length, *frame(tokenizer, target=True, language=self.languages[1]))

    def shapes(self, batch: int) -> Shapes:
        """Those of `pack_pairs`, and the examples that were too long."""
        return super().shapes(batch) | {"too_long_B": ((batch,), np.int32)}

    def __call__(self, examples: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """As `pack_pairs`, and:

        too_long_B: int32: how many of the examples were too long, all counted in the first row. If none is left, that
            row is empty.

        Raises:
            ValueError: an example without these fields, or with no text in them; one that is too long and is to be
                refused.
        """
        sources, targets = ([text_in(example, name) for example in examples] for name in (self.source, self.target))
        sources = framed(
            [self.prefix + text for text in sources], self.tokenizer, self.length, language=self.languages[0]
        )
        targets = framed(targets, self.tokenizer, self.target_length, target=True, language=self.languages[1])
        pairs, count = [], 0
        for (source, source_excess), (target, target_excess) in zip(sources, targets):
            over = source_excess or target_excess
            if over and self.too_long == "refuse":
                raise ValueError(
                    f"an example is too long for a row, its source by {source_excess} tokens and its target by "
                    f"{target_excess}: set data.length or objective.target_length higher, or objective.too_long to "
                    "truncate or drop"
                )
            count += bool(over)
            if not over or self.too_long == "truncate":
                pairs.append((source, target))
        rows = self.pack(pairs)
        if count and not pairs:
            rows = pad(rows, 1)
        too_long_B = np.zeros(len(rows["source_BS"]), np.int32)
        too_long_B[:1] = count
        return rows | {"too_long_B": too_long_B}


def pair_shapes(batch: int, length: int, target_length: int) -> Shapes:
    """The arrays of `pack_pairs`."""
    source, target = (batch, length), (batch, target_length)
    return {
        "source_BS": (source, np.int32),
        "target_BT": (target, np.int32),
        "targets_BT": (target, np.int32),
        "source_documents_BS": (source, np.int32),
        "target_documents_BT": (target, np.int32),
        "valid_BS": (source, np.bool_),
        "valid_BT": (target, np.bool_),
    }


def pack_pairs(pairs: Sequence[Pair], length: int, target_length: int, *, start: int, padding: int) -> Rows:
    """Packs pairs into as few rows as best fit, largest first, manages within both lengths.

    Args:
        pairs: at least one token on either side, and no more than a row holds.
        length: tokens of a row of sources, S.
        target_length: tokens of a row of targets, T.
        start: the decoder's input where the first token of a target is to be predicted.
        padding: id of the tokens after the last pair.

    Returns:
        source_BS: int32: the encoder's input.
        target_BT: int32: the decoder's input: each target after the start token, without its last token.
        targets_BT: int32: the tokens to predict from that.
        source_documents_BS, target_documents_BT: int32: the pairs of a row, numbered from 1; 0 for padding.
        valid_BS, valid_BT: bool: not padding.
    """
    sizes = np.array([(len(source), len(target)) for source, target in pairs], int).reshape(-1, 2)
    row, column, number = best_fit(sizes, (length, target_length))
    rows = zeros(pair_shapes(int(row.max(initial=-1)) + 1, length, target_length))
    for name in ("source_BS", "target_BT", "targets_BT"):
        rows[name][:] = padding
    for (source, target), at, first, size, document in zip(pairs, row, column, sizes, number):
        here, there = (slice(i, i + n) for i, n in zip(first, size))
        rows["source_BS"][at, here] = source
        rows["target_BT"][at, there] = [start, *target[:-1]]
        rows["targets_BT"][at, there] = target
        rows["source_documents_BS"][at, here] = rows["target_documents_BT"][at, there] = document
    return rows | {"valid_BS": rows["source_documents_BS"] > 0, "valid_BT": rows["target_documents_BT"] > 0}


def best_fit(sizes: np.ndarray, lengths: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row, the columns and the number in its row (from 1) of each pair: the largest first, by the longer of its
    sides, into the row that is then fullest of those with room on both.

    Args:
        sizes: int[n, 2], of sources and targets, none larger than the row.

    Returns:
        int[n]; int[n, 2]; int[n].
    """
    shares, full = sizes / lengths, (sizes == lengths).any(axis=1)
    row, column, number = np.cumsum(full) - 1, np.zeros_like(sizes), np.ones(len(sizes), int)
    used, members = np.zeros_like(sizes), np.zeros(len(sizes), int)  # of each row that has room left
    rows = 0
    for pair in np.lexsort((-shares.sum(axis=1), -shares.max(axis=1)))[full.sum() :]:
        room = lengths - used[:rows] - sizes[pair]
        fits = np.flatnonzero((room >= 0).all(axis=1))
        at = fits[(room[fits] / lengths).sum(axis=1).argmin()] if len(fits) else rows
        rows = max(rows, at + 1)
        members[at] += 1
        row[pair], column[pair], number[pair] = full.sum() + at, used[at], members[at]
        used[at] += sizes[pair]
    return row, column, number


def framed(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, *, target: bool = False, language: str | None = None
) -> list[tuple[np.ndarray, int]]:
    """The tokens of each text in their frame, at most `length`, and the number of tokens that were cut off.

    Raises:
        ValueError: there is no room for any text; the tokenizer does not know the language.
    """
    first, last = frame(tokenizer, target=target, language=language)
    room = room_in(length, first, last)
    found = tokenizer.encode_batch(texts, target=target)
    return [(np.concatenate([first, text.ids[:room], last]), max(0, len(text) - room)) for text in found]


def frame(tokenizer: Tokenizer, *, target: bool = False, language: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The tokens before and after a text: those of the tokenizer's own template, and the end token in any case, since
    generation stops there."""
    encoding = tokenizer.encode("a", template=True, target=target, language=language)
    inside = np.flatnonzero(encoding.texts >= 0)
    first, last = encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
    return first, last if tokenizer.eos_id in last else np.append(last, np.int32(tokenizer.eos_id))


def room_in(length: int, *frame: np.ndarray) -> int:
    """The number of tokens of text that fit into a row of this length with its frame.

    Raises:
        ValueError: there are none.
    """
    room = length - sum(len(part) for part in frame)
    if room < 1:
        raise ValueError(
            f"rows of {length} tokens leave no room for text within its frame: set data.length or "
            "objective.target_length higher"
        )
    return room
