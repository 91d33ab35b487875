"""Where in a context the answer to a question stands (Rajpurkar et al. 2016; Devlin et al. 2018, section 4.2)."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transformer_zoo.data.encoding import Encoding
from transformer_zoo.nn.checks import check_sizes
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

ROW_LENGTH, OVERLAP = 384, 128  # by default, as in the reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers(RowReader):
    """`question-answering`: the answer to a `question` in a `context`.

    A long context is read in windows. In a window, the probability of an answer is that of its first token times that
    of its last; of a window without the answer they mean little, unless the model has learned to say that there is
    none.

    Result: `answer`, whole words of the context; `score`, the probability; `start`, `end`, its first character in the
    context and the one past its last. With top_k above 1, a list of the best answers, the best first.
    """

    top_k: int = 1
    """The number of answers."""
    no_answer: bool = False
    """Whether there may be none: an answer "" with start and end 0, whose probability is that of the first token, the
    least of all windows. For models that have learned it from questions without an answer."""
    answer_length: int = 15
    """The largest number of tokens of an answer."""
    row_length: int | None = None
    """Tokens of question and window together. None: 384, or the model's positions if it has fewer."""
    overlap: int | None = None
    """Tokens that consecutive windows have in common. None: 128, or half of what is left beside the question."""

    required = ("question", "context")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(self, "top_k", "answer_length", "row_length")
        check_overlap(self.overlap)

    def for_model(self, m: Any) -> "Answers":
        positions = super().length(m)
        if self.row_length is not None and positions is not None and self.row_length > positions:
            raise ValueError(f"row_length is {self.row_length}, and the model has {positions} positions")
        return self

    def length(self, m: Any) -> int:
        return self.row_length or min(ROW_LENGTH, super().length(m) or ROW_LENGTH)

    def columns(self, m: Any) -> tuple[str, ...]:
        return ("answer", "score", "start", "end") if self.top_k == 1 else ()

    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        length, found = self.length(m), []
        texts = zip(*((i.fields["question"], i.fields["context"]) for i in inputs))
        for one, encoding in zip(inputs, encode(m, *texts)):
            others = int((encoding.texts != 1).sum())
            if length - others < 1:
                raise one.error(f"has a question of {others} tokens with its frame, and a row has {length} tokens")
            kept = windows_of(one, encoding, 1, length, self.overlap, OVERLAP)
            found.append(Example(one, [row(encoding, some) for some in kept], (encoding, kept)))
        return found

    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits_BT2": read(model, params, batch).logits}

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> dict[str, Any] | list[dict[str, Any]]:
        context, (encoding, windows_) = example.input.fields["context"], example.about
        scores: dict[tuple[int, int], float] = {}
        words = _words(encoding)
        nothing = 1.0
        for kept, output in zip(windows_, outputs):
            inside = encoding.texts[kept] == 1
            allowed = inside | (encoding.ids[kept] == m.tokenizer.cls_id)
            start_T, end_T = softmax(np.where(allowed, output["logits_BT2"].T, -np.inf))
            nothing = min(nothing, float(start_T[0] * end_T[0]))
            start_T, end_T = start_T * inside, end_T * inside
            for first, last, score in self._spans(start_T, end_T):
                span = _without_space(context, int(words[kept[first], 0]), int(words[kept[last], 1]))
                scores[span] = max(scores.get(span, 0.0), score)
        found = [
            {"answer": context[start:end], "score": score, "start": start, "end": end}
            for (start, end), score in scores.items()
        ]
        if self.no_answer or not found:
            found.append({"answer": "", "score": nothing, "start": 0, "end": 0})
        found = sorted(found, key=lambda answer: (-answer["score"], answer["start"], answer["end"]))[: self.top_k]
        return found[0] if self.top_k == 1 else found

    def _spans(self, start_T: np.ndarray, end_T: np.ndarray) -> Iterator[tuple[int, int, float]]:
        """First token, last token and probability of a window's best spans. There are some to spare, since several may
        lie in the same words."""
        scores_TT = np.triu(np.tril(np.outer(start_T, end_T), self.answer_length - 1))
        count = min(2 * self.top_k + 10, scores_TT.size)
        best = np.argpartition(-scores_TT, count - 1, axis=None)[:count]
        for first, last in zip(*np.unravel_index(best, scores_TT.shape)):
            if scores_TT[first, last] > 0:
                yield int(first), int(last), float(scores_TT[first, last])


def _words(encoding: Encoding) -> np.ndarray:
    """int32[n, 2]: the characters of the context, first and one past the last, of the word that each token is of."""
    found = encoding.offsets.copy()
    of_words = np.flatnonzero((encoding.texts == 1) & (encoding.words >= 0))
    _, first, word = np.unique(encoding.words[of_words], return_index=True, return_inverse=True)
    last = np.zeros_like(first)
    last[word] = np.arange(len(of_words))  # of those of a word, the last one counts
    found[of_words] = np.stack([found[of_words[first], 0], found[of_words[last], 1]], axis=1)[word]
    return found


def _without_space(context: str, start: int, end: int) -> tuple[int, int]:
    """A span of the context without white space around it."""
    inside = context[start:end]
    return start + len(inside) - len(inside.lstrip()), end - len(inside) + len(inside.rstrip())
