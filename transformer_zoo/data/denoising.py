"""Pairs of a source and a target out of one text: what was taken from the source, or put out of order in it, is to be
written. How that is done follows from the text and the generator of random numbers that its group of documents gets.
"""

import bisect
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from transformer_zoo.data import sentences
from transformer_zoo.data.corruption import predictions
from transformer_zoo.data.packing import Rows
from transformer_zoo.data.seq2seq import Pair, frame, pack_pairs, room_in
from transformer_zoo.data.tokenizers import Tokenizer

Selection = Literal["ind-orig", "ind-uniq", "seq-orig", "seq-uniq"]

# Spans to be written, or the end of a text


class Denoiser(NamedTuple):
    """One way to take a part of a text away."""

    density: float
    """The share of the tokens that is taken."""
    span: float | None
    """Tokens in one of the spans in which they stand, on average. None: they are the end of the text, and the share is
    anything from none to twice that."""
    mode: int | None = None
    """Token that stands before the source."""


def denoised_rows(
    documents: list[dict[str, Any]],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    target_length: int,
    start: int,
    packing: str,
    denoisers: Sequence[Denoiser],
    shares: Sequence[float],
) -> Rows:
    """Rows of texts with spans, or their ends, to be written (Raffel et al. 2020, sections 3.1.4 and 3.3.4; Tay
    et al. 2022, section 3.1).

    A text is cut into pieces, each for the denoiser that is drawn for it: as many tokens as fill a row of sources or of
    targets with what the denoiser makes of them, and the last as many as are left. Sources and targets end with the end
    token, and nothing else frames them.

    Args:
        length, target_length, start: as `pack_pairs` takes them.
        packing: `documents`: each by itself; `concat`: one behind the other, with the end token between them.
        denoisers: the ways to take tokens away.
        shares: how often each of them is drawn.

    Returns:
        What `pack_pairs` does.
    """
    sentinels = np.array(tokenizer.sentinel_ids, np.int32)
    end, pairs = np.array([tokenizer.eos_id], np.int32), []
    for text, _ in texts_of(documents, tokenizer, packing):
        at = 0
        while at < len(text):
            how = denoisers[rng.choice(len(denoisers), p=shares)]
            density = how.density if how.span else 2 * how.density * rng.random()
            mode = np.array([] if how.mode is None else [how.mode], np.int32)
            size = longest_text(length - len(mode), target_length, density, how.span, len(sentinels))
            piece = text[at : at + size]
            if how.span:
                source, target = take_spans(piece, rng, density, how.span, sentinels)
            else:
                source, target = take_end(piece, density)
            pairs.append((np.concatenate([mode, source, end]), np.concatenate([target, end])))
            at += size
    return pack_pairs(pairs, length, target_length, start=start, padding=tokenizer.pad_id)


def taken(tokens: Any, density: float, span: float | None) -> tuple[Any, Any]:
    """How many of so many tokens are taken, and in how many spans, as the code published with Raffel et al. 2020 counts
    them; the end of a text is no span. A text of one token is taken whole."""
    hidden = np.clip(np.rint(tokens * density).astype(int), 1, np.maximum(tokens - 1, 1))
    if span is None:
        return hidden, 0 * hidden
    return hidden, np.clip(np.rint(hidden / span).astype(int), 1, np.maximum(tokens - hidden, 1))


@functools.lru_cache(maxsize=128)
def longest_text(length: int, target_length: float, density: float, span: float | None, sentinels: int) -> int:
    """The most tokens of text that fit: those that stay, a sentinel a span, and the end token, into the source; those
    that are taken, as many sentinels, and the end token, into the target. Of 512 and any number, where 15 % are taken
    in spans of 3, they are 568, and the target has 114.

    Raises:
        ValueError: nothing does.
    """
    bound = min(length + target_length, length / (1 - density) + 1)
    tokens = np.arange(1, int(bound) + 1)
    hidden, spans = taken(tokens, density, span)
    fits = (tokens - hidden + spans < length) & (hidden + spans < target_length) & (spans <= sentinels)
    if not fits.any():
        raise ValueError(
            f"rows of {length} and {target_length:g} tokens leave no room for text: set data.length or "
            "objective.target_length higher"
        )
    return int(fits.sum())  # what fits grows with the tokens


def take_spans(text: np.ndarray, rng: np.random.Generator, density: float, span: float, sentinels: np.ndarray) -> Pair:
    """What stays and what is taken, each with the sentinel of the span in the place of the other.

    By turns, from the first token on, stay and are taken as many tokens as it takes to divide both at random.
    """
    hidden, spans = (int(count) for count in taken(len(text), density, span))
    sizes = np.stack([divide(len(text) - hidden, spans, rng), divide(hidden, spans, rng)], axis=1)
    parts = np.split(text, np.cumsum(sizes)[:-1])
    marks = sentinels[:spans, None]
    by_turns = lambda one, other: np.concatenate([part for turn in zip(one, other) for part in turn])
    return by_turns(parts[::2], marks), by_turns(marks, parts[1::2])


def take_end(text: np.ndarray, density: float) -> Pair:
    """The beginning of a text, and its end."""
    hidden = int(taken(len(text), density, None)[0])
    return text[: len(text) - hidden], text[len(text) - hidden :]


def divide(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """int[parts]: sizes of at least one that add up to the count (nothing in one part is 0), all as likely."""
    cuts = np.sort(rng.choice(np.arange(1, count), parts - 1, replace=False))
    return np.diff([0, *cuts, count])


# Masks to be filled, and sentences to be put in order


def infilled_rows(
    documents: list[dict[str, Any]],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    target_length: int,
    start: int,
    packing: str,
    rate: float,
    span: float,
    permute: bool,
) -> Rows:
    """Rows of texts whose sentences stand in any order, with masks in the place of spans; the target is the text (Lewis
    et al. 2020, section 2.2).

    Args:
        length, target_length, start: as `pack_pairs` takes them.
        packing: `documents`: each by itself; `concat`: one behind the other, with the end token between them. What is
            too long for a row is cut.
        rate: share of the tokens that are masked.
        span: tokens in a span, on average.
        permute: put the sentences out of order.

    Returns:
        What `pack_pairs` does.
    """
    first, last = frame(tokenizer)
    room, pairs = room_in(min(length, target_length), first, last), []
    for text, borders in texts_of(documents, tokenizer, packing):
        for at in range(0, len(text), room):
            piece = text[at : at + room]
            parts = np.split(piece, borders[(borders > at) & (borders < at + len(piece))] - at)
            order = rng.permutation(len(parts)) if permute else range(len(parts))
            source = infill(np.concatenate([parts[i] for i in order]), rng, rate, span, tokenizer.mask_id)
            pairs.append(tuple(np.concatenate([first, tokens, last]) for tokens in (source, piece)))
    return pack_pairs(pairs, length, target_length, start=start, padding=tokenizer.pad_id)


def infill(text: np.ndarray, rng: np.random.Generator, rate: float, span: float, mask: int) -> np.ndarray:
    """A text with one mask in the place of each of some spans, nowhere one upon another.

    Their lengths are drawn from a Poisson distribution till they add up to the rate, the last being cut. One of length
    0 puts a mask where nothing is missing; there are no more of them than leave the text as long as it was.
    """
    hidden = predictions(len(text), rate)
    lengths = np.empty(0, int)
    while lengths.sum() < hidden:
        lengths = np.append(lengths, rng.poisson(span, hidden))
    ends = np.minimum(np.cumsum(lengths), hidden)
    lengths = np.diff(ends[: np.searchsorted(ends, hidden) + 1], prepend=0)
    lengths = rng.permutation(np.sort(lengths)[-hidden:])

    size = len(text) - hidden + len(lengths)
    masked = np.zeros(size, bool)
    masked[rng.choice(size, len(lengths), replace=False)] = True
    widths = np.ones(size, int)  # of the text, for each token of the source
    widths[masked] = lengths
    begins = np.minimum(np.cumsum(widths) - widths, len(text) - 1)
    return np.where(masked, mask, text[begins]).astype(np.int32)


def texts_of(
    documents: list[dict[str, Any]], tokenizer: Tokenizer, packing: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The tokens of each document that has some, and the places among them where sentences begin, from the second on.

    With `concat` the documents are one text, with the end token behind each but the last.
    """
    texts = [document["text"] for document in documents]
    tokens, begins = [], []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts)):
        if len(encoding):
            tokens.append(encoding.ids)
            begins.append(np.array([first for first, _ in sentences.spans_of(text, encoding, len(encoding))], int))
    if packing == "concat" and tokens:
        at = np.cumsum([0, *(len(part) + 1 for part in tokens)])
        begins = [np.concatenate([first + places for first, places in zip(at, begins)])]
        end = np.array([tokenizer.eos_id], np.int32)
        tokens = [np.concatenate([part for text in tokens for part in (text, end)][:-1])]
    return zip(tokens, (places[1:] for places in begins))


# Sentences to be written


def gap_rows(
    documents: list[dict[str, Any]],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    target_length: int,
    start: int,
    ratio: float,
    selection: Selection,
    gap: int,
) -> Rows:
    """Rows of texts without the sentences that say most of what the others say; these are the target (Zhang et al.
    2020, section 3.1).

    Args:
        length, target_length, start: as `pack_pairs` takes them. A text is as many whole sentences as a source holds.
        ratio: share of the sentences that are taken; one that a target has no more room for is passed over.
        selection: how they are chosen, as `choose_gaps` takes it.
        gap: token that stands in the place of each.

    Returns:
        What `pack_pairs` does.
    """
    first, last = frame(tokenizer)
    room, target_room = (room_in(size, first, last) for size in (length, target_length))
    texts, pairs = [document["text"] for document in documents], []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts)):
        spans = sentences.spans_of(text, encoding, min(room, target_room))
        for group in _whole_sentences(spans, room):
            parts = [encoding.ids[begin:end] for begin, end in group]
            words = [text[encoding.offsets[begin, 0] : encoding.offsets[end - 1, 1]] for begin, end in group]
            count = max(1, round(ratio * len(parts)))
            chosen = choose_gaps(words, [len(part) for part in parts], count, target_room, selection)
            kept = [[gap] if number in chosen else part for number, part in enumerate(parts)]
            written = [parts[number] for number in chosen]
            pairs.append((np.concatenate([first, *kept, last]), np.concatenate([first, *written, last])))
    return pack_pairs(pairs, length, target_length, start=start, padding=tokenizer.pad_id)


def choose_gaps(
    texts: Sequence[str], sizes: Sequence[int], count: int, room: int, selection: Selection = "ind-orig"
) -> list[int]:
    """The sentences whose ROUGE-1 F1 against the rest of the text is highest, in the text's order.

    Args:
        texts, sizes: of each sentence the text and how many tokens it has.
        count: how many are wanted.
        room: for how many tokens.
        selection: each judged by itself (ind) or together with those chosen before (seq); words counted as often as
            they occur (orig) or once (uniq).
    """
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    known = {word: i for i, word in enumerate(dict.fromkeys(word for sentence in words for word in sentence))}
    counts = np.zeros((len(texts), len(known)), int)
    for row, sentence in zip(counts, words):
        np.add.at(row, [known[word] for word in sentence], 1)
    total, left, chosen = counts.sum(axis=0), np.array(sizes), []
    together, unique = selection.startswith("seq"), selection.endswith("uniq")
    while len(chosen) < count and (left <= room).any():
        said = counts + (counts[chosen].sum(axis=0) if together else 0)
        rest = total - said
        if unique:
            said, rest = np.minimum(said, 1), np.minimum(rest, 1)
        common = np.minimum(said, rest).sum(axis=1)
        f1 = 2 * common / np.maximum(said.sum(axis=1) + rest.sum(axis=1), 1)
        best = int(np.where(left <= room, f1, -1).argmax())
        chosen.append(best)
        room -= sizes[best]
        left[best] = np.iinfo(left.dtype).max
    return sorted(chosen)


def _whole_sentences(spans: list[tuple[int, int]], room: int) -> Iterator[list[tuple[int, int]]]:
    """Sentences side by side, as many at a time as there is room for. One by itself is cut in two, if it can be, so
    that something stays."""
    ends, first = [end for _, end in spans], 0
    while first < len(spans):
        begin, end = spans[first]
        following = bisect.bisect_right(ends, begin + room)
        if following == first + 1 and end - begin > 1:
            middle = (begin + end) // 2
            yield [(begin, middle), (middle, end)]
        else:
            yield spans[first:following]
        first = following
