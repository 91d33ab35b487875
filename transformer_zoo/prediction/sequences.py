"""Whole texts: their classes, whether one follows the other, and which of several continues them."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from transformer_zoo.prediction.reader import Example, Input, Outputs, RowReader, encode, row, shorten, softmax


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextLabels(RowReader):
    """`sequence-classification`: the class of a `text`, or of a `text` and its `text_pair`.

    Result: `label`, the class with the highest score; `score`, its score; `scores`, those of all classes by name. They
    are probabilities, each by itself where a text may have several classes (`labels` lists those above 0.5); of a
    regression they are the numbers themselves.
    """

    required = ("text",)
    optional = ("text_pair",)
    pair = ("text", "text_pair")

    def columns(self, m: Any) -> tuple[str, ...]:
        several = m.config.problem == "multi_label_classification"
        return ("label", "score", *(f"scores.{label}" for label in m.config.labels), *(["labels"] if several else []))

    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        encodings = encode(m, *zip(*((i.fields["text"], i.fields.get("text_pair")) for i in inputs)))
        kept = shorten(encodings, self.length(m))
        return [
            Example(one, [row(e, some)], shortened=len(some) < len(e)) for one, e, some in zip(inputs, encodings, kept)
        ]

    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"logits_BC": read(model, params, batch).logits}

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> dict[str, Any]:
        logits_C, labels, problem = outputs[0]["logits_BC"], m.config.labels, m.config.problem
        several = problem == "multi_label_classification"
        if problem == "regression":
            scores_C = logits_C
        elif several or len(labels) == 1:
            scores_C = 1 / (1 + np.exp(-logits_C))
        else:
            scores_C = softmax(logits_C)
        scores = {label: float(score) for label, score in zip(labels, scores_C, strict=True)}
        best = max(scores, key=scores.__getitem__)
        found = {"label": best, "score": scores[best], "scores": scores}
        return found | ({"labels": [label for label in labels if scores[label] > 0.5]} if several else {})


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextSentence(TextLabels):
    """`next-sentence`: whether `text_pair` follows `text` (Devlin et al. 2018, section 3.1).

    Result: `is_next`; `score`, the probability that it follows.
    """

    required = ("text", "text_pair")
    optional = ()

    def columns(self, m: Any) -> tuple[str, ...]:
        return ("is_next", "score")

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> dict[str, Any]:
        probability = float(softmax(outputs[0]["logits_BC"])[0])  # the first of the two classes: it follows
        return {"is_next": probability > 0.5, "score": probability}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices(RowReader):
    """`multiple-choice`: which of the `choices` goes with the `text`.

    Result: `choice`, its index; `answer`, its text; `score`, its probability; `scores`, those of all choices in order.
    """

    required = ("text", "choices")
    lists = ("choices",)

    def examples(self, m: Any, inputs: Sequence[Input]) -> list[Example]:
        pairs = [(i.fields["text"], choice) for i in inputs for choice in i.fields["choices"]]
        encodings = encode(m, *zip(*pairs))
        parts = zip(encodings, shorten(encodings, self.length(m)))
        found = []
        for one in inputs:
            own = list(itertools.islice(parts, len(one.fields["choices"])))
            is_shortened = any(len(some) < len(e) for e, some in own)
            found.append(Example(one, [row(e, some) for e, some in own], shortened=is_shortened))
        return found

    def program(self, model: Any, params: Any, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        # A row is a question with one choice: the choices of a question need not lie in one batch.
        return {"logits_B": read(model, params, {name: x[:, None] for name, x in batch.items()}).logits[:, 0]}

    def result(self, m: Any, example: Example, outputs: Sequence[Outputs]) -> dict[str, Any]:
        scores = softmax(np.array([output["logits_B"] for output in outputs])).tolist()
        best = int(np.argmax(scores))
        return {
            "choice": best, "answer": example.input.fields["choices"][best], "score": scores[best], "scores": scores
        }  # fmt: skip


def read(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> Any:
    """The model's output for a batch of whole texts."""
    tokens, segments, valid = (batch[name] for name in ("tokens_BT", "segments_BT", "valid_BT"))
    return model.apply({"params": params}, tokens, segments, valid, method="read")
