"""Documents of tokens into rows of one length. Pure functions of their arguments; nothing is carried from call to call.

A document of n tokens is n + 1 predictions: from a start token, each of its tokens, and then the end token. So every
byte of text is predicted once, and the sum of the losses over the bytes is an honest number of bits per byte. A row
holds inputs (`tokens_BT`) and what is to be predicted from each (`targets_BT`); nobody downstream shifts anything.
"""

import bisect
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_zoo.data.tokenizers import Tokenizer

Rows = dict[str, np.ndarray]


def pack(
    documents: Sequence[tuple[np.ndarray, np.ndarray]], length: int, *, start: int, end: int, concat: bool = False
) -> Rows:
    """Packs documents into as few rows as best fit, longest first, manages.

    A document longer than a row is cut into rows; each piece is a document of its own there, and its first input is the
    token before it. With `concat` all documents become one, joined by `end`, and only the last row has room left.

    Args:
        documents: of each, its tokens, int[n], and how many bytes of text each prediction covers, int[n + 1].
        length: predictions in a row, T.
        start: token from which the first of a document is predicted.
        end: token that is predicted after the last one.
        concat: attention and positions run across documents, from one end of a row to the other.

    Returns:
        tokens_BT, targets_BT: int32; 0 where there is nothing.
        valid_BT: bool: there is something.
        documents_BT: int32: the documents of a row, from 1; 0 where there is nothing.
        positions_BT: int32: the place in the document, from 0.
        bytes_B: int32: UTF-8 bytes of text that the row's predictions cover.
    """
    if not documents:
        return _empty(0, length)
    lengths = np.array([len(ids) + 1 for ids, _ in documents])
    ends = np.cumsum(lengths)
    targets = np.concatenate([part for ids, _ in documents for part in (ids, [end])])
    tokens = np.concatenate([[start], targets[:-1]])
    if concat:
        lengths = ends[-1:]
    else:
        tokens[ends[:-1]] = start

    pieces = -(-lengths // length)  # of each document
    sizes = np.full(pieces.sum(), length)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * length
    row, column, number = _best_fit(sizes, length)

    within = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    place = np.repeat(row * length + column, sizes) + within
    rows = _empty(int(row.max()) + 1, length)
    for name, values in (
        ("tokens_BT", tokens),
        ("targets_BT", targets),
        ("valid_BT", True),
        ("documents_BT", np.repeat(number, sizes)),
        ("positions_BT", within),
    ):
        rows[name].reshape(-1)[place] = values
    counts = np.concatenate([counts for _, counts in documents])
    np.add.at(rows["bytes_B"], np.repeat(row, sizes), counts)
    return rows


def pack_texts(
    documents: list[dict[str, Any]], rng: np.random.Generator, *, tokenizer: Tokenizer, length: int, packing: str
) -> Rows:
    """The rows of a group of documents, as `pack` makes them. Empty documents have nothing to predict: they are left
    out."""
    texts = [document["text"] for document in documents if document["text"]]
    encoded = []
    for text, (ids, counts) in zip(texts, tokenizer.encode_bytes(texts)):
        dropped = len(text.encode()) - counts.sum()  # at the end of the text, by tokenizers that are not byte-level
        encoded.append((ids, np.append(counts, dropped)))
    start = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return pack(encoded, length, start=start, end=tokenizer.eos_id, concat=packing == "concat")


def pad(rows: Rows, count: int) -> Rows:
    """Rows with empty ones after them, up to `count`: zeros."""
    fill = lambda values: np.zeros((count - len(values), *values.shape[1:]), values.dtype)
    return {name: np.concatenate([values, fill(values)]) for name, values in rows.items()}


def _empty(count: int, length: int) -> Rows:
    rows = {
        f"{name}_BT": np.zeros((count, length), np.int32) for name in ("tokens", "targets", "documents", "positions")
    }
    return rows | {"valid_BT": np.zeros((count, length), bool), "bytes_B": np.zeros(count, np.int32)}


def _best_fit(sizes: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The row, column and number in its row (from 1) of each piece: into the fullest row with room, longest first.

    Best fit decreasing never needs more than 11/9 of the fewest rows possible, plus one (Johnson 1973).
    """
    row, column, number = np.zeros_like(sizes), np.zeros_like(sizes), np.ones_like(sizes)
    full = sizes == length
    row[full] = np.arange(full.sum())
    count = int(full.sum())
    open_rows: list[tuple[int, int, int]] = []  # (room, row, documents in it), in order
    for piece in np.argsort(-sizes, kind="stable")[count:].tolist():
        size = int(sizes[piece])
        fit = bisect.bisect_left(open_rows, (size,))
        if fit == len(open_rows):
            room, where, before = length, count, 0
            count += 1
        else:
            room, where, before = open_rows.pop(fit)
        row[piece], column[piece], number[piece] = where, length - room, before + 1
        if room > size:
            bisect.insort(open_rows, (room - size, where, before + 1))
    return row, column, number
