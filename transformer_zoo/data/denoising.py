"""Pairs of a source and a target out of one text: the target is what was taken from the source, or put out of order in
it. Which tokens these are follows from the text and the group's generator of random numbers.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from transformer_zoo.data import sentences
from transformer_zoo.data.corruption import predictions
from transformer_zoo.data.documents import text_in
from transformer_zoo.data.packing import Packing
from transformer_zoo.data.rows import Rows
from transformer_zoo.data.seq2seq import Pair, PairMaker, frame, room_in
from transformer_zoo.data.tokenizers import Tokenizer

Selection = Literal["ind-orig", "ind-uniq", "seq-orig", "seq-uniq"]

# Spans to be written, or the end of a text


class Denoiser(NamedTuple):
    """One way to take a part of a text away."""

    density: float
    """The share of the tokens that is taken."""
    span: float | None
    """Mean number of tokens in a span. None: the end of the text is taken, a share drawn uniformly from 0 to twice the
    density."""
    mode: str | None = None
    """Token before the source, if the tokenizer has it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenoisedRows(PairMaker):
    """Rows of texts of which spans, or the end, are the target (Raffel et al. 2020, sections 3.1.4 and 3.3.4; Tay et
    al. 2022, section 3.1).

    A text is cut into pieces, and a denoiser is drawn for each: as many tokens as fill a row of sources or of targets
    once they are denoised; the last piece holds the rest. Sources and targets end with the end token, and have no other
    frame.
    """

    name: ClassVar[str] = "denoised_rows"

    packing: Packing
    """documents: each by itself; concat: joined, with the end token between them."""
    denoisers: tuple[Denoiser, ...]
    """Ways to take tokens away."""
    shares: tuple[float, ...]
    """The probability of each of them."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Besides, there are sentinels if there are spans, and room for text."""
        super().check(tokenizer)
        if any(denoiser.span for denoiser in self.denoisers) and not tokenizer.sentinel_ids:
            raise ValueError(
                "the tokenizer has no sentinels to stand for spans: take one that was made for T5, such as "
                "vocabulary.kind=t5"
            )
        for density, span, mode in self.denoisers:
            marked = mode is not None and tokenizer.id_of(mode) is not None
            longest_text(self.length - marked, self.target_length, density, span, len(tokenizer.sentinel_ids))

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """As `pack_pairs`."""
        sentinels = np.array(self.tokenizer.sentinel_ids, np.int32)
        end, pairs = np.array([self.tokenizer.eos_id], np.int32), []
        for text, _ in texts_of(documents, self.tokenizer, self.packing):
            at = 0
            while at < len(text):
                density, span, mode = self.denoisers[rng.choice(len(self.denoisers), p=self.shares)]
                density = density if span else 2 * density * rng.random()
                mode_id = None if mode is None else self.tokenizer.id_of(mode)
                first = np.array([] if mode_id is None else [mode_id], np.int32)
                size = longest_text(self.length - len(first), self.target_length, density, span, len(sentinels))
                piece = text[at : at + size]
                if span:
                    source, target = take_spans(piece, rng, density, span, sentinels)
                else:
                    source, target = take_end(piece, density)
                pairs.append((np.concatenate([first, source, end]), np.concatenate([target, end])))
                at += size
        return self.pack(pairs)


def taken(tokens: Any, density: float, span: float | None) -> tuple[Any, Any]:
    """The numbers of tokens and of spans that are taken from a text of `tokens` tokens, as in the code published with
    Raffel et al. 2020; the end of a text is not a span. A text of one token is taken whole."""
    hidden = np.clip(np.rint(tokens * density).astype(int), 1, np.maximum(tokens - 1, 1))
    if span is None:
        return hidden, 0 * hidden
    return hidden, np.clip(np.rint(hidden / span).astype(int), 1, np.maximum(tokens - hidden, 1))


@functools.lru_cache(maxsize=128)
def longest_text(length: int, target_length: float, density: float, span: float | None, sentinels: int) -> int:
    """The most tokens of text that fit: the remaining tokens, one sentinel a span and the end token into the source;
    the tokens that are taken, as many sentinels and the end token into the target. For a source of 512 and any target,
    with 15 % taken in spans of 3, these are 568 tokens, and the target has 114.

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
    """The text without the spans, and the spans, each with sentinels in place of the other's tokens.

    Stretches that remain and spans that are taken alternate from the first token on; their sizes are drawn at random.
    """
    hidden, spans = (int(count) for count in taken(len(text), density, span))
    sizes = np.stack([divide(len(text) - hidden, spans, rng), divide(hidden, spans, rng)], axis=1)
    parts = np.split(text, np.cumsum(sizes)[:-1])
    marks = sentinels[:spans, None]
    by_turns = lambda one, other: np.concatenate([part for turn in zip(one, other) for part in turn])
    return by_turns(parts[::2], marks), by_turns(marks, parts[1::2])


def take_end(text: np.ndarray, density: float) -> Pair:
    """The beginning of a text, and the end that is taken."""
    hidden = int(taken(len(text), density, None)[0])
    return text[: len(text) - hidden], text[len(text) - hidden :]


def divide(count: int, parts: int, rng: np.random.Generator) -> np.ndarray:
    """int[parts]: sizes of at least 1 that add up to the count, drawn uniformly (0 in one part is [0])."""
    cuts = np.sort(rng.choice(np.arange(1, count), parts - 1, replace=False))
    return np.diff([0, *cuts, count])


# Masks to be filled, and sentences to be put in order


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfilledRows(PairMaker):
    """Rows of texts whose sentences are permuted and whose spans are replaced by a mask each; the target is the text
    (Lewis et al. 2020, section 2.2)."""

    name: ClassVar[str] = "infilled_rows"

    packing: Packing
    """documents: each by itself; concat: joined, with the end token between them. A text longer than a row is cut."""
    rate: float
    """Share of the tokens that is masked."""
    span: float
    """Mean number of tokens in a span."""
    permute: bool
    """Whether the sentences are put out of order."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Besides, there is a mask, and room for text."""
        super().check(tokenizer)
        if tokenizer.mask_id is None:
            raise ValueError(
                "the tokenizer has no mask: take one that was made for BART, such as vocabulary.kind=roberta"
            )
        self._room(*frame(tokenizer))

    def _room(self, *frame: np.ndarray) -> int:
        return room_in(min(self.length, self.target_length), *frame)

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """As `pack_pairs`."""
        first, last = frame(self.tokenizer)
        room, pairs = self._room(first, last), []
        for text, borders in texts_of(documents, self.tokenizer, self.packing):
            for at in range(0, len(text), room):
                piece = text[at : at + room]
                parts = np.split(piece, borders[(borders > at) & (borders < at + len(piece))] - at)
                order = rng.permutation(len(parts)) if self.permute else range(len(parts))
                permuted = np.concatenate([parts[i] for i in order])
                source = infill(permuted, rng, self.rate, self.span, self.tokenizer.mask_id)
                pairs.append(tuple(np.concatenate([first, tokens, last]) for tokens in (source, piece)))
        return self.pack(pairs)


def infill(text: np.ndarray, rng: np.random.Generator, rate: float, span: float, mask: int) -> np.ndarray:
    """A text in which each of some spans, which do not overlap, is replaced by one mask.

    Their lengths are drawn from a Poisson distribution until they add up to the rate; the last is cut. A span of length
    0 inserts a mask; there are at most as many of these as leave the text no longer than it was.
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
    """The tokens of each document that has some, and the positions where its sentences begin, from the second on.

    With `concat` the documents are one text, with the end token between them.
    """
    texts = [text_in(document, "text") for document in documents]
    tokens, begins = [], []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts)):
        if len(encoding):
            tokens.append(encoding.ids)
            begins.append(np.array([first for first, _ in sentences.spans_of(text, encoding, len(encoding))], int))
    if packing == "concat" and tokens:
        at = np.cumsum([0, *(len(part) + 1 for part in tokens)])
        begins = [np.concatenate([first + starts for first, starts in zip(at, begins)])]
        end = np.array([tokenizer.eos_id], np.int32)
        tokens = [np.concatenate([part for text in tokens for part in (text, end)][:-1])]
    return zip(tokens, (starts[1:] for starts in begins))


# Sentences to be written


@dataclasses.dataclass(frozen=True, kw_only=True)
class GapRows(PairMaker):
    """Rows of texts without the sentences that have most in common with the others, which are the target (Zhang et al.
    2020, section 3.1). A text is as many whole sentences as fit into a row of sources."""

    name: ClassVar[str] = "gap_rows"

    ratio: float
    """Share of the sentences that is taken; one that no longer fits into the target is passed over."""
    selection: Selection
    """How they are chosen, as `choose_gaps` takes it."""
    mask: str
    """Token that replaces each sentence; if the tokenizer has none of this name, its mask."""

    def check(self, tokenizer: Tokenizer) -> None:
        """Besides, there is a mask, and room for text on both sides."""
        super().check(tokenizer)
        if self._gap(tokenizer) is None:
            raise ValueError(f"the tokenizer has neither {self.mask!r} nor a mask to replace a sentence")
        self._rooms(*frame(tokenizer))

    def _rooms(self, *frame: np.ndarray) -> tuple[int, int]:
        return room_in(self.length, *frame), room_in(self.target_length, *frame)

    def _gap(self, tokenizer: Tokenizer) -> int | None:
        gap = tokenizer.id_of(self.mask)
        return tokenizer.mask_id if gap is None else gap

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """As `pack_pairs`."""
        first, last = frame(self.tokenizer)
        room, target_room = self._rooms(first, last)
        gap, texts, pairs = self._gap(self.tokenizer), [text_in(document, "text") for document in documents], []
        for text, encoding in zip(texts, self.tokenizer.encode_batch(texts)):
            spans = sentences.spans_of(text, encoding, min(room, target_room))
            for group in _whole_sentences(spans, room):
                parts = [encoding.ids[begin:end] for begin, end in group]
                words = [text[encoding.offsets[begin, 0] : encoding.offsets[end - 1, 1]] for begin, end in group]
                count = max(1, round(self.ratio * len(parts)))
                chosen = choose_gaps(words, [len(part) for part in parts], count, target_room, self.selection)
                kept = [[gap] if number in chosen else part for number, part in enumerate(parts)]
                taken_out = [parts[number] for number in chosen]
                pairs.append((np.concatenate([first, *kept, last]), np.concatenate([first, *taken_out, last])))
        return self.pack(pairs)


def choose_gaps(
    texts: Sequence[str], sizes: Sequence[int], count: int, room: int, selection: Selection = "ind-orig"
) -> list[int]:
    """The sentences whose ROUGE-1 F1 against the rest of the text is highest, in the text's order.

    Args:
        texts, sizes: the text of each sentence, and the number of its tokens.
        count: how many are chosen.
        room: tokens of the chosen sentences, at most.
        selection: each scored by itself (ind) or together with those chosen before (seq); words counted as often as
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
        own = counts + (counts[chosen].sum(axis=0) if together else 0)
        rest = total - own
        if unique:
            own, rest = np.minimum(own, 1), np.minimum(rest, 1)
        common = np.minimum(own, rest).sum(axis=1)
        f1 = 2 * common / np.maximum(own.sum(axis=1) + rest.sum(axis=1), 1)
        best = int(np.where(left <= room, f1, -1).argmax())
        chosen.append(best)
        room -= sizes[best]
        left[best] = np.iinfo(left.dtype).max
    return sorted(chosen)


def _whole_sentences(spans: list[tuple[int, int]], room: int) -> Iterator[list[tuple[int, int]]]:
    """Groups of consecutive sentences, as many as fit. A sentence by itself is cut in two, if it can be, so that some
    of it remains in the source."""
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
