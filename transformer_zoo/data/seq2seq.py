"""Pairs of a source and a target, side by side in rows, and the pairs that two fields of an example make.

An encoder-decoder reads a row of sources and, from left to right, a row of targets. The first source of a row and its
first target belong together, and so on: they bear the same number, and attention leads from none to another.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from transformer_zoo.data.labelled import field_of
from transformer_zoo.data.packing import Rows, pad
from transformer_zoo.data.tokenizers import Tokenizer

Pair = tuple[np.ndarray, np.ndarray]
"""Tokens of a source and of its target, int32[n] each, with all that frames them."""

TooLong = Literal["truncate", "drop", "refuse"]


def pack_pairs(pairs: Sequence[Pair], length: int, target_length: int, *, start: int, padding: int | None) -> Rows:
    """Packs pairs into as few rows as best fit, largest first, manages within both lengths.

    Args:
        pairs: at least one token on either side, and no more than a row holds.
        length: tokens of a source row, S.
        target_length: tokens of a target row, T.
        start: what the decoder reads where the first token of a target is to be predicted.
        padding: what stands where there is nothing; None: 0.

    Returns:
        source_BS: int32: what the encoder reads.
        target_BT: int32: what the decoder reads: each target after the start token, without its last.
        targets_BT: int32: what it is to predict from that.
        source_documents_BS, target_documents_BT: int32: the pairs of a row, from 1; 0 where there is nothing.
        valid_BS, valid_BT: bool: there is something.
    """
    sizes = np.array([(len(source), len(target)) for source, target in pairs], int).reshape(-1, 2)
    row, column, number = best_fit(sizes, (length, target_length))
    count, padding = int(row.max(initial=-1)) + 1, padding or 0
    rows = {
        "source_BS": np.full((count, length), padding, np.int32),
        "target_BT": np.full((count, target_length), padding, np.int32),
        "targets_BT": np.full((count, target_length), padding, np.int32),
        "source_documents_BS": np.zeros((count, length), np.int32),
        "target_documents_BT": np.zeros((count, target_length), np.int32),
    }
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


def pair_rows(
    examples: list[dict[str, Any]],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    target_length: int,
    start: int,
    source: str,
    target: str,
    prefix: str,
    languages: tuple[str | None, str | None],
    too_long: TooLong,
) -> Rows:
    """The rows of examples with a text to read and a text to write.

    Args:
        length, target_length, start: as `pack_pairs` takes them.
        source, target: the fields that hold the texts.
        prefix: what is put before each source, such as the name of the task.
        languages: what the frames of sources and of targets say; None: the tokenizer's own.
        too_long: what becomes of an example with a text that no row holds: its end is cut off, it is left out, or
            nothing goes on.

    Returns:
        What `pack_pairs` does, and
        too_long_B: int32: how many of the examples were too long, in the first row for all of them. If none is left
            the row is empty.

    Raises:
        ValueError: an example without these fields, or with no text in them; one that is too long and is to be refused;
            rows that have no room for text.
    """
    sources, targets = ([text_in(example, name) for example in examples] for name in (source, target))
    sources = framed([prefix + text for text in sources], tokenizer, length, language=languages[0])
    targets = framed(targets, tokenizer, target_length, target=True, language=languages[1])
    pairs, count = [], 0
    for (read, more_to_read), (written, more_to_write) in zip(sources, targets):
        over = more_to_read or more_to_write
        if over and too_long == "refuse":
            raise ValueError(
                f"an example is too long for a row, its source by {more_to_read} tokens and its target by "
                f"{more_to_write}: set data.length or objective.target_length higher, or objective.too_long to "
                "truncate or drop"
            )
        count += bool(over)
        if not over or too_long == "truncate":
            pairs.append((read, written))
    rows = pack_pairs(pairs, length, target_length, start=start, padding=tokenizer.pad_id)
    if count and not pairs:
        rows = pad(rows, 1)
    too_long_B = np.zeros(len(rows["source_BS"]), np.int32)
    too_long_B[:1] = count
    return rows | {"too_long_B": too_long_B}


def text_in(example: dict[str, Any], name: str) -> str:
    """The text that an example holds in a field."""
    text = field_of(example, name)
    if not isinstance(text, str):
        raise ValueError(f"an example's field {name!r} holds no text: {text!r:.60}")
    return text


def framed(
    texts: Sequence[str], tokenizer: Tokenizer, length: int, *, target: bool = False, language: str | None = None
) -> list[tuple[np.ndarray, int]]:
    """Of each text its tokens in their frame, at most so many, and how many more there are.

    Raises:
        ValueError: there is no room for any text; the tokenizer does not know the language.
    """
    first, last = frame(tokenizer, target=target, language=language)
    room = room_in(length, first, last)
    found = tokenizer.encode_batch(texts, target=target)
    return [(np.concatenate([first, text.ids[:room], last]), max(0, len(text) - room)) for text in found]


def frame(tokenizer: Tokenizer, **how: Any) -> tuple[np.ndarray, np.ndarray]:
    """What stands before and behind a text: what the tokenizer's own template puts there, with the end token in any
    case, since that is how a target says that it is over."""
    encoding = tokenizer.encode("a", template=True, **how)
    inside = np.flatnonzero(encoding.texts >= 0)
    first, last = encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]
    return first, last if tokenizer.eos_id in last else np.append(last, np.int32(tokenizer.eos_id))


def room_in(length: int, *frame: np.ndarray) -> int:
    """The tokens of text that a row of this length holds besides a frame.

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
