"""Documents of tokens into rows of one length. Pure functions of their arguments; nothing is carried from call to call.

A document of n tokens is n + 1 predictions: after a start token, each of its tokens, and then the end token. So every
byte of text is predicted once, and the sum of the losses, divided by the bytes, is the true number of bits per byte. A
row holds inputs (`tokens_BT`) and the target of each (`targets_BT`), which are not shifted again later.
"""

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_zoo.data.documents import text_in
from transformer_zoo.data.rows import RowMaker, Rows, Shapes, zeros
from transformer_zoo.data.tokenizers import Tokenizer

Packing = Literal["documents", "concat"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedTexts(RowMaker):
    """Documents packed into rows by `pack`, each after a start token (the end token if there is no other)."""

    name: ClassVar[str] = "pack_texts"

    packing: Packing
    """documents: kept apart; concat: one long text."""

    def check(self, tokenizer: Tokenizer) -> None:
        """The end of a document is predicted."""
        if tokenizer.eos_id is None:
            raise ValueError(
                "the tokenizer has no end-of-text token (eos), so the end of a document cannot be predicted"
            )

    def shapes(self, batch: int) -> Shapes:
        """The arrays of `pack`."""
        return packed_shapes(batch, self.length)

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """The rows of these documents, of which the empty ones are left out: nothing in them can be predicted.

        A piece of a document that another one follows has no end. So in each piece after the first, only the first
        token is predicted otherwise than in the whole document: from the start token, and not from the one before it.
        """
        documents = [document for document in documents if text_in(document, "text")]
        texts, encoded, ends = [document["text"] for document in documents], [], []
        for document, text, (ids, counts) in zip(documents, texts, self.tokenizer.encode_bytes(texts)):
            dropped = len(text.encode()) - counts.sum()  # at the end of the text, by tokenizers that are not byte-level
            counts = np.append(counts, dropped)
            if document.get("continued") and len(ids):  # its last token is the end of a piece, and no end follows
                ends.append(ids[-1])
                ids, counts = ids[:-1], np.append(counts[:-2], counts[-2:].sum())
            else:
                ends.append(self.tokenizer.eos_id)
            encoded.append((ids, counts))
        start = self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id
        return pack(encoded, self.length, start=start, end=ends, concat=self.packing == "concat")


def packed_shapes(batch: int, length: int) -> Shapes:
    """The arrays of `pack`."""
    int32 = {name: ((batch, length), np.int32) for name in ("tokens_BT", "targets_BT", "documents_BT", "positions_BT")}
    return int32 | {"valid_BT": ((batch, length), np.bool_), "bytes_B": ((batch,), np.int32)}


def pack(
    documents: Sequence[tuple[np.ndarray, np.ndarray]],
    length: int,
    *,
    start: int | Sequence[int],
    end: int | Sequence[int],
    concat: bool = False,
    predicted: Sequence[np.ndarray] | None = None,
) -> Rows:
    """Packs documents into as few rows as best fit, longest first, manages.

    A document longer than a row is cut; each piece is a document of its own in its row, and its first input is the
    token before it. With `concat` all documents become one, joined by `end`, and only the last row is not full.

    Args:
        documents: the tokens of each, int[n], and the bytes of text that each of its predictions covers, int[n + 1].
        length: predictions in a row, T.
        start: token from which the first of a document is predicted; or one for each document.
        end: token that is predicted after the last one; or one for each document.
        concat: attention and positions run across documents, from one end of a row to the other.
        predicted: which predictions of each document count, bool[n + 1]. None: all.

    Returns:
        tokens_BT, targets_BT: int32; 0 for padding.
        valid_BT: bool: predictions that count; no padding.
        documents_BT: int32: the documents of a row, numbered from 1; 0 for padding.
        positions_BT: int32: the position in the document, from 0.
        bytes_B: int32: UTF-8 bytes of text that the row's predictions cover.
    """
    if not documents:
        return zeros(packed_shapes(0, length))
    lengths = np.array([len(ids) + 1 for ids, _ in documents])
    ends = np.cumsum(lengths)
    firsts, finals = (np.broadcast_to(np.array(x, np.int32), len(documents)) for x in (start, end))
    targets = np.concatenate([np.append(ids, final) for (ids, _), final in zip(documents, finals)])
    tokens = np.concatenate([firsts[:1], targets[:-1]])
    if concat:
        lengths = ends[-1:]
    else:
        tokens[ends[:-1]] = firsts[1:]

    pieces = -(-lengths // length)  # of each document
    sizes = np.full(pieces.sum(), length)
    sizes[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * length
    row, column, number = _best_fit(sizes, length)

    within = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    index = np.repeat(row * length + column, sizes) + within
    rows = zeros(packed_shapes(int(row.max()) + 1, length))
    for name, values in (
        ("tokens_BT", tokens),
        ("targets_BT", targets),
        ("valid_BT", True if predicted is None else np.concatenate(predicted)),
        ("documents_BT", np.repeat(number, sizes)),
        ("positions_BT", within),
    ):
        rows[name].reshape(-1)[index] = values
    counts = np.concatenate([counts for _, counts in documents])
    np.add.at(rows["bytes_B"], np.repeat(row, sizes), counts)
    return rows


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
