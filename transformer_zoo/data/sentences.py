"""Documents cut into sentences, and pairs of segments made of them; a model is to classify whether a pair belongs
together.

The text of a pair is that of `corruption`: int32[n, 2], tokens and their words.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import numpy as np

from transformer_zoo.data import corruption
from transformer_zoo.data.documents import text_in
from transformer_zoo.data.rows import Rows, Shapes
from transformer_zoo.data.tokenizers import Encoding, Tokenizer

NextSentence = Literal["nsp", "sop"]

# Where a sentence ends, in code and in prose alike: behind the ends of lines; and within a line behind a full stop and
# the like, before the space, since in byte-level vocabularies a word bears the space in front of it.
_END = re.compile(r"(?:[^\S\n]*\n)+|(?<=[.!?])[\"')\]]*(?=[^\S\n]+[^\sa-z])|(?<=[。！？])")

SHORT = 0.1
"""Share of the pairs that are made shorter than a row, so that a model is trained on all lengths."""


def split(text: str) -> list[str]:
    """The sentences of a text, lines or parts of them. Put together again they are the text."""
    ends = [0, *(match.end() for match in _END.finditer(text)), len(text)]
    return [text[start:end] for start, end in zip(ends, ends[1:]) if start < end]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedRows(corruption.Masking):
    """Rows of two segments each, [CLS] a [SEP] b [SEP], with some of the tokens hidden.

    Half of the pairs are in order. In the others, with `nsp`, b is from another document of the group (Devlin et al.
    2019, section 3.1 and appendix A.2); with `sop`, a and b are swapped (Lan et al. 2020, section 3.1).
    """

    name: ClassVar[str] = "paired_rows"
    frame: ClassVar[int] = 3

    next_sentence: NextSentence

    def shapes(self, batch: int) -> Shapes:
        """Those of `Masking`, the segments, and whether b does not follow a."""
        return super().shapes(batch) | {"segments_BT": ((batch, self.length), np.int32), "next_B": ((batch,), np.int32)}

    def __call__(self, documents: list[dict[str, Any]], rng: np.random.Generator) -> Rows:
        """As `mask`, and:

        segments_BT: int32: 1 for b and the separator after it.
        next_B: int32: 0 where b follows a, 1 where not.
        """
        texts = sentences_of(documents, self.tokenizer, longest=max(1, self.room // 2))
        texts = [text for text in texts if len(text) > 1]
        cls, sep = corruption.special(self.tokenizer.cls_id), corruption.special(self.tokenizer.sep_id)
        pairs = [
            pair for number in range(len(texts)) for pair in _pairs(texts, number, self.room, self.next_sentence, rng)
        ]
        rows = self.mask([np.concatenate([cls, a, sep, b, sep]) for a, b, _ in pairs], rng)
        for row, (a, b, label) in enumerate(pairs):
            rows["segments_BT"][row, len(a) + 2 : len(a) + len(b) + 3] = 1
            rows["next_B"][row] = label
        return rows


def sentences_of(documents: list[dict[str, Any]], tokenizer: Tokenizer, longest: int) -> list[list[np.ndarray]]:
    """The sentences of each document. It is tokenised whole, and a token belongs to the sentence that it begins in.

    A sentence of more than `longest` tokens is cut; the only sentence of a document is cut in two.
    """
    texts = [text_in(document, "text") for document in documents]
    found = []
    for text, encoding in zip(texts, tokenizer.encode_batch(texts)):
        tokens = corruption.text_of(encoding, tokenizer)
        sentences = [tokens[start:end] for start, end in spans_of(text, encoding, longest)]
        found.append(np.array_split(sentences[0], min(2, len(sentences[0]))) if len(sentences) == 1 else sentences)
    return found


def spans_of(text: str, encoding: Encoding, longest: int) -> list[tuple[int, int]]:
    """The first token of each sentence of a text, and one past its last: a token belongs to the sentence that it begins
    in. One of more than `longest` tokens is cut."""
    ends = np.cumsum([len(sentence) for sentence in split(text)])
    borders = [0, *np.searchsorted(encoding.offsets[:, 0], ends[:-1]).tolist(), len(encoding)]
    return [
        (at, min(at + longest, end)) for start, end in zip(borders, borders[1:]) for at in range(start, end, longest)
    ]


def _pairs(
    texts: list[list[np.ndarray]], number: int, room: int, next_sentence: NextSentence, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """All pairs (a, b, label) of one document. Sentences that a pair does not use are the beginning of the next
    pair."""
    sentences, at = texts[number], 0
    ends = np.cumsum([len(sentence) for sentence in sentences])
    while at < len(sentences) - 1:
        target = rng.integers(2, room + 1) if rng.random() < SHORT else room
        before = ends[at - 1] if at else 0
        end = max(at + 2, int(np.searchsorted(ends, before + target)) + 1)
        middle = int(rng.integers(at + 1, min(end, len(sentences))))
        a, b = np.concatenate(sentences[at:middle]), np.concatenate(sentences[middle:end])
        label, at = int(rng.random() < 0.5), end
        if label and next_sentence == "sop":
            a, b = b, a
        elif label:
            b, at = _elsewhere(texts, number, target - len(a), rng), middle
        yield *_truncate(a, b, room, rng), label


def _elsewhere(texts: list[list[np.ndarray]], number: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Sentences of another document (of the same if there is no other), with `size` tokens or more if it has them."""
    other = texts[(number + 1 + rng.integers(max(1, len(texts) - 1))) % len(texts)]
    first = int(rng.integers(len(other)))
    ends = np.cumsum([len(sentence) for sentence in other[first:]])
    return np.concatenate(other[first : first + 1 + int(np.searchsorted(ends, size))])


def _truncate(a: np.ndarray, b: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two texts that fit into a row: the longer loses tokens, at either end, until they are equal, then both do."""
    size_a = min(len(a), max(room - len(b), (room + 1) // 2))
    size_b = min(len(b), room - size_a)
    first_a, first_b = rng.binomial(len(a) - size_a, 0.5), rng.binomial(len(b) - size_b, 0.5)
    return a[first_a : first_a + size_a], b[first_b : first_b + size_b]
