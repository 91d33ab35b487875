"""Classify texts and tokens, and find answers: the fine-tuning tasks of an encoder (Devlin et al. 2019, section 4)."""

import collections
import dataclasses
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import json_files
from transformer_zoo.config import Data
from transformer_zoo.data import labels as data_labels
from transformer_zoo.data.documents import Document, Source, field_of, text_in
from transformer_zoo.data.labelled import AnswerRows, Problem, SequenceRows, TokenRows, answers_in, spans_in
from transformer_zoo.objectives import metrics
from transformer_zoo.objectives.objective import Batch, Objective, Sums, training_mode

FAR = 3
"""Standard deviations: numbers whose mean is farther from 0 are learned slowly, since a fresh head begins there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification(Objective):
    """A class of several for each of some items, such as texts or tokens.

    The loss, also in evaluation, is that of torch's `CrossEntropyLoss` with the same weights and label smoothing, over
    the whole batch: with weights, the weighted sum of the items' losses over the sum of the weights of their classes.

    Raises:
        ValueError: class weights that are no weights, or a smoothing outside [0, 1).
    """

    from_data: ClassVar[dict[str, Any]] = {"labels": (), "class_weights": "balanced"}

    labels: tuple[str, ...] = ()
    """Names of the classes. Empty: those of the data, or else of the weights to begin with, if they fit, or else those
    found in the training split, in order."""
    by_index: bool = False
    """A number that is no text is the index of a class, even where names are numbers. It is set where the data set has
    names for its numbers, as those of TFDS have. Otherwise, with the names 1 to 5, 3 is the class 3."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """A weight for each class, in the order of the labels. balanced: such that all classes weigh the same in the
    training split: n / (C n_c), of n items in C classes. None: 1 each."""
    label_smoothing: float = 0.0
    """The share of a target that is spread evenly over all classes (Szegedy et al. 2016, section 7)."""

    def __post_init__(self) -> None:
        weights = self.class_weights
        if isinstance(weights, tuple) and not (
            all(math.isfinite(weight) and weight >= 0 for weight in weights) and sum(weights) > 0
        ):
            raise ValueError(f"class_weights are {weights}: they must be finite and at least 0, and one of them more")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}: it must be at least 0 and less than 1")

    @property
    def labelled_field(self) -> str:
        """The field of an example with its labels."""
        raise NotImplementedError

    def labels_of(self, document: Document) -> list[Any]:
        """The labels of an example."""
        raise NotImplementedError

    def with_labels(
        self, config: Any, splits: Mapping[str, Source], head: Any = None, tell: data_labels.Tell | None = None
    ) -> tuple[Objective, str]:
        """With the names of the classes and their weights, and how often each class occurs."""
        field, (train, *others) = self.labelled_field, splits
        of_data, of_model = splits[train].classes(field), getattr(config, "labels", ())
        by_index = self.by_index or of_data is not None
        survey = lambda split, labels: data_labels.survey(
            splits[split], split, field, self.labels_of, labels, several=self.has_several, by_index=by_index,
            inputs=self.input_fields, tell=tell,
        )  # fmt: skip
        known = {
            "given": self.labels,
            "those of the data set": of_data,
            "those of the model": of_model if _named(of_model) else (),
        }
        origin, labels = next(((origin, names) for origin, names in known.items() if names), ("", ()))
        first = survey(train, labels)
        if not labels and head is not None and first.fits(head.labels):
            labels, origin = head.labels, "those of the weights to begin with"
        if not labels:
            labels, origin = first.names(), "found in the data"
        counts = [first.counts(labels), *(survey(split, labels).counts(labels) for split in others)]
        objective = dataclasses.replace(self, labels=labels)
        if self.class_weights == "balanced":
            objective = dataclasses.replace(objective, class_weights=_balanced(counts[0], train))
        return objective, data_labels.line(counts, list(splits), field, origin)

    item: ClassVar[str]
    """What has a class, with its article."""

    @property
    def loss_unit(self) -> str:
        """With what changes it: class weights and smoothing."""
        weighted = "weighted " if self.class_weights else ""
        smoothed = f", smoothed by {self.label_smoothing:g}" if self.label_smoothing else ""
        return f"{weighted}nats {self.item}{smoothed}"

    @property
    def has_several(self) -> bool:
        """An example may have any number of labels."""
        return True

    def by_class(self, sums: Sums) -> metrics.ByClass | None:
        """From the confusion matrix."""
        confusion_CC = sums["confusion_CC"]
        return metrics.ByClass.of(self.labels or tuple(map(str, range(len(confusion_CC)))), confusion_CC)

    def _check_weights(self) -> None:
        """Raises ValueError if there are not as many weights as classes."""
        weights = self.class_weights
        if isinstance(weights, tuple) and self.labels and len(weights) != len(self.labels):
            raise ValueError(
                f"class_weights has {len(weights)} numbers, and there are {len(self.labels)} classes: give one for "
                f"each of {json_files.excerpt(', '.join(self.labels), 300)}, in this order"
            )

    def weigh(self, targets: jax.Array, weights: jax.Array) -> Sums:
        """The divisor of the loss besides the number of items: the sum of the weights of their classes, if they have
        any.

        Args:
            targets: int32[...].
            weights: bool[...]: these are items.
        """
        if self.class_weights is None:
            return {}
        if self.class_weights == "balanced":
            raise ValueError("class_weights is balanced, and no data were read to find the weights: give numbers")
        return {"weight": (jnp.array(self.class_weights, jnp.float32)[targets] * weights).sum()}

    def classified(self, logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
        """Loss and confusion matrix of logits [..., C] against targets [...]."""
        of_class = jnp.ones(logits.shape[-1]) if self.class_weights is None else jnp.array(self.class_weights)
        nats_of = -jax.nn.log_softmax(logits) * of_class.astype(logits.dtype)
        nats = jnp.take_along_axis(nats_of, targets[..., None], axis=-1)[..., 0]
        if self.label_smoothing:
            nats = (1 - self.label_smoothing) * nats + self.label_smoothing * nats_of.mean(axis=-1)
        return {
            "nats": jnp.where(weights, nats, 0).sum(),
            "confusion_CC": metrics.confusion(targets, logits.argmax(axis=-1), weights, logits.shape[-1]),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceClassification(Classification):
    """A class, several classes or a number for each text or pair of texts.

    Raises:
        ValueError: not one or two fields of text; and as `Classification`.
    """

    name: ClassVar[str] = "sequence-classification"
    task: ClassVar[str] = "sequence-classification"
    from_data: ClassVar[dict[str, Any]] = {**Classification.from_data, "problem": None}

    texts: tuple[str, ...] = ("text",)
    """Fields of an example with its text, or its two texts."""
    label: str = "label"
    """Field with its class, classes or number."""
    problem: Problem | None = None
    """One class of several; any number of them; or a number (mean squared error). None: that of the weights to begin
    with, or of the model, or one class."""
    separator: str | None = None
    """What separates the classes of an example that has several, if they are one text, such as |. None: they are a
    list."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.texts) not in (1, 2):
            raise ValueError(f"SequenceClassification.texts is {self.texts}: it must name one or two fields")
        if self.separator == "":
            raise ValueError("SequenceClassification.separator is empty: give what separates labels, such as |")

    labelled_field = property(operator.attrgetter("label"))

    item: ClassVar[str] = "an example"

    @property
    def loss_unit(self) -> str:
        """Of the problem."""
        units = {"regression": "squared error", "multi_label_classification": "nats a label"}
        return units.get(self.problem) or super().loss_unit

    @property
    def has_several(self) -> bool:
        """Of the problem."""
        return self.problem == "multi_label_classification"

    def labels_of(self, document: Document) -> list[Any]:
        """One, or several."""
        value = field_of(document, self.label)
        return data_labels.labels_in(value, self.separator, self.label) if self.has_several else [value]

    def with_labels(
        self, config: Any, splits: Mapping[str, Source], head: Any = None, tell: data_labels.Tell | None = None
    ) -> tuple[Objective, str]:
        """Besides, with the problem. Numbers have no names: all are read, and the line says in what range they are."""
        objective = dataclasses.replace(self, problem=self.problem or self._problem(head) or self._problem(config))
        if objective.problem != "regression":
            return super(SequenceClassification, objective).with_labels(config, splits, head, tell)
        if not self.labels and head is not None and len(head.labels) == 1:
            objective = dataclasses.replace(objective, labels=head.labels)
        ranges, spreads = [], []
        for split, documents in splits.items():
            read = lambda document: data_labels.number_of(field_of(document, self.label), self.label)
            numbers = np.array(list(data_labels.each(documents, split, read, self.input_fields, tell)))
            low, high, mean = numbers.min(), numbers.max(), numbers.mean()
            ranges.append(f"{len(numbers):,} in {split}, from {low:g} to {high:g}, mean {mean:.4g}")
            spreads.append((mean, numbers.std()))
        line, (mean, spread) = f"{self.label}: numbers, {'; '.join(ranges)}", spreads[0]
        if abs(mean) > FAR * spread > 0 and (head is None or len(head.labels) != 1):  # the head is fresh
            line += (
                "\nThese numbers are far from 0 for their spread, which takes many steps to learn: train on "
                f"({self.label} - {mean:.4g}) / {spread:.4g} instead, and convert the predictions back"
            )
        return objective, line

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple[Objective, Any]:
        """Names of the classes from the data, and the problem, in both.

        Raises:
            ValueError: as `Objective.for_data`; class weights or smoothing where there are no classes that exclude one
                another, or not as many weights as classes.
        """
        problem = self.problem or self._problem(config) or "single_label_classification"
        if problem != "single_label_classification" and (self.class_weights or self.label_smoothing):
            raise ValueError(
                f"objective.problem is {problem}, which has no class_weights and no label_smoothing: these are of "
                "single_label_classification"
            )
        named = classes(self.label) if problem != "regression" else None
        if problem == "regression" and not self.labels and len(getattr(config, "labels", ())) != 1:
            named = (self.label,)
        objective, config = _with_labels(dataclasses.replace(self, problem=problem), config, named)
        objective._check_weights()
        return objective, dataclasses.replace(config, problem=problem) if hasattr(config, "problem") else config

    @staticmethod
    def _problem(config: Any) -> Problem | None:
        return getattr(config, "problem", None)

    @property
    def reads(self) -> tuple[str, ...]:
        """The text or texts, and the label."""
        return *self.input_fields, self.label

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The text or texts."""
        return tuple(text_in(document, name) for name in self.texts)

    @property
    def inputs(self) -> dict[str, str]:
        """The text or texts."""
        return dict(zip(("text", "text_pair"), self.texts))

    def maker(self, data: Data) -> SequenceRows:
        """A row an example."""
        return SequenceRows(
            length=data.length, texts=self.texts, label=self.label, problem=self.problem, labels=self.labels,
            separator=self.separator, by_index=self.by_index or None,
        )  # fmt: skip

    def counts(self, batch: Batch) -> Sums:
        """The numbers of examples and of their tokens, and the sum of the weights of their classes, if any."""
        weights_B = batch["valid_BT"].any(axis=1)
        weight = self.weigh(batch["targets_B"], weights_B) if "targets_B" in batch else {}
        return {"examples": weights_B.sum(), "tokens": batch["valid_BT"].sum()} | weight

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """The loss, and the sums that its metrics need, over the examples."""
        logits_BC = read(model, params, batch, key).logits
        weights_B = batch["valid_BT"].any(axis=1)
        if self.problem == "regression":
            x_B, y_B = (jnp.where(weights_B, x, 0) for x in (logits_BC[:, 0], batch["targets_B"]))
            products = {"x": x_B, "y": y_B, "xx": x_B**2, "yy": y_B**2, "xy": x_B * y_B}
            return {"error": ((x_B - y_B) ** 2).sum()} | {name: x.sum() for name, x in products.items()}
        _check_classes(logits_BC, self.labels)
        if self.problem != "multi_label_classification":
            return self.classified(logits_BC, batch["targets_B"], weights_B)
        targets_BC, weights_B1 = batch["targets_BC"], weights_B[:, None]
        nats_BC = jax.nn.softplus(logits_BC) - targets_BC * logits_BC
        guesses_BC = (logits_BC > 0) * weights_B1
        return {
            "nats": jnp.where(weights_B1, nats_BC, 0).sum(),
            "right_C": (guesses_BC * targets_BC).sum(0),
            "guessed_C": guesses_BC.sum(0).astype(jnp.float32),
            "true_C": targets_BC.sum(0),
            "exact": ((guesses_BC == targets_BC).all(axis=1) & weights_B).sum(),
        }

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """A mean over examples: nats (a class, where there may be several), or the squared error."""
        if "weight" in counts:
            return sums["nats"] / _positive(counts["weight"])
        count = jnp.maximum(counts["examples"], 1)
        if self.problem == "regression":
            return sums["error"] / count
        classes = len(self.labels) if self.problem == "multi_label_classification" else 1
        return sums["nats"] / (count * classes)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """The loss, and metrics of the problem.

        One class: accuracy (the same as micro F1), macro F1, Matthews' correlation, and with two classes the F1 of the
        second. Several: macro and micro F1, and the share of examples with exactly the right classes. A number:
        Pearson's correlation.
        """
        loss = {"loss": self.loss(sums, counts)}
        if self.problem == "regression":
            moments = (sums[name] for name in ("x", "y", "xx", "yy", "xy"))
            return loss | {"pearson": metrics.pearson(counts["examples"], *moments)}
        if self.problem != "multi_label_classification":
            return loss | _metrics(sums["confusion_CC"])
        right, guessed, true = sums["right_C"], sums["guessed_C"], sums["true_C"]
        return loss | {
            "macro_f1": metrics.macro(metrics.f1_of(right, guessed, true), guessed, true),
            "micro_f1": metrics.f1_of(right.sum(), guessed.sum(), true.sum()),
            "exact_match": sums["exact"] / jnp.maximum(counts["examples"], 1),
        }

    def by_class(self, sums: Sums) -> metrics.ByClass | None:
        """Of several classes to an example without a confusion matrix; none of a number."""
        if self.problem == "regression":
            return None
        if not self.has_several:
            return super().by_class(sums)
        return metrics.ByClass(self.labels, *(np.asarray(sums[name]) for name in ("right_C", "guessed_C", "true_C")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(Classification):
    """A class for each span of a text, predicted at its tokens: parts of speech, named entities."""

    name: ClassVar[str] = "token-classification"
    task: ClassVar[str] = "token-classification"
    item: ClassVar[str] = "a token with a label"

    text: str = "text"
    """Field of an example with its text, or with a list of words."""
    spans: str = "spans"
    """Field with the labels: `start`, `end` and `label` of spans of characters, or one for each word."""
    subwords: Literal["first", "all"] = "first"
    """Which of a span's tokens are classified."""

    labelled_field = property(operator.attrgetter("spans"))

    def labels_of(self, document: Document) -> list[Any]:
        """One a span."""
        return spans_in(field_of(document, self.text), field_of(document, self.spans), self.spans)[-1]

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple[Objective, Any]:
        """Names of the classes from the data, in both.

        Raises:
            ValueError: as `Objective.for_data`; not as many class weights as classes.
        """
        objective, config = _with_labels(self, config, classes(self.spans))
        objective._check_weights()
        return objective, config

    @property
    def reads(self) -> tuple[str, ...]:
        """The text and the labels."""
        return *self.input_fields, self.spans

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The text, or the words with spaces between them."""
        text = field_of(document, self.text)
        return (text if isinstance(text, str) else " ".join(text),)

    @property
    def inputs(self) -> dict[str, str]:
        """The text."""
        return {"text": self.text}

    def input_of(self, document: dict[str, Any]) -> dict[str, Any]:
        """The text, or the words with spaces between them."""
        return {"text": self.texts_of(document)[0]}

    def maker(self, data: Data) -> TokenRows:
        """As many rows as a text takes."""
        return TokenRows(
            length=data.length, text=self.text, spans=self.spans, subwords=self.subwords, labels=self.labels,
            by_index=self.by_index or None,
        )  # fmt: skip

    def counts(self, batch: Batch) -> Sums:
        """The numbers of tokens with a label, and of all tokens; and the sum of the weights of their classes, if they
        have any."""
        weight = self.weigh(batch["targets_BT"], batch["judged_BT"])
        return {"judged": batch["judged_BT"].sum(), "tokens": batch["valid_BT"].sum()} | weight

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and confusion matrix over the tokens with a label."""
        logits_BTC = read(model, params, batch, key).logits
        _check_classes(logits_BTC, self.labels)
        return self.classified(logits_BTC, batch["targets_BT"], batch["judged_BT"])

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a token with a label."""
        if "weight" in counts:
            return sums["nats"] / _positive(counts["weight"])
        return sums["nats"] / jnp.maximum(counts["judged"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss, accuracy (the same as micro F1), macro F1 and Matthews' correlation, token by token."""
        return {"loss": self.loss(sums, counts)} | _metrics(sums["confusion_CC"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Objective):
    """Where in a context the answer to a question begins and ends (Rajpurkar et al. 2016; Devlin et al. 2019, 4.2).

    A long context is cut into windows, and each is an example: in one without the answer, the first token is the
    target. Metrics are therefore means over windows, and are computed on tokens; where contexts fit into a row, as
    nearly all of SQuAD's do into 384 tokens, they are means over questions.

    Raises:
        ValueError: no room for a question or an answer.
    """

    name: ClassVar[str] = "question-answering"
    task: ClassVar[str] = "question-answering"
    loss_unit: ClassVar[str] = "nats a window"

    question: str = "question"
    """Field of an example with its question."""
    context: str = "context"
    """Field with the text that holds the answer."""
    answers: str = "answers"
    """Field with the answers: lists of `text` and `answer_start`. The first is trained on; any of them is right."""
    question_length: int = 64
    """Tokens of a question; the rest is left out."""
    overlap: int = 128
    """Tokens that a window of the context and the next have in common."""
    answer_length: int = 30
    """Tokens of the longest answer that is looked for."""

    def __post_init__(self) -> None:
        if min(self.question_length, self.answer_length) < 1 or self.overlap < 0:
            raise ValueError(
                "QuestionAnswering: question_length and answer_length must be at least 1, overlap at least 0"
            )

    @property
    def reads(self) -> tuple[str, ...]:
        """Question, context and answers."""
        return *self.input_fields, self.answers

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """Question and context."""
        return text_in(document, self.question), text_in(document, self.context)

    @property
    def inputs(self) -> dict[str, str]:
        """Question and context."""
        return {"question": self.question, "context": self.context}

    def with_labels(
        self, config: Any, splits: Mapping[str, Source], head: Any = None, tell: data_labels.Tell | None = None
    ) -> tuple[Objective, str]:
        """Checks that there are texts, and that all answers stand where they should."""
        read = lambda example: answers_in(text_in(example, self.context), field_of(example, self.answers), self.answers)
        for split, documents in splits.items():
            collections.deque(data_labels.each(documents, split, read, self.input_fields, tell), maxlen=0)
        return self, ""

    def maker(self, data: Data) -> AnswerRows:
        """As many rows as the context takes."""
        return AnswerRows(
            length=data.length, question=self.question, context=self.context, answers=self.answers,
            question_length=self.question_length, overlap=self.overlap,
        )  # fmt: skip

    def counts(self, batch: Batch) -> Sums:
        """The numbers of windows and of their tokens."""
        return {"windows": batch["answers_BA"].any(axis=1).sum(), "tokens": batch["valid_BT"].sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats of start and end; exact match and F1 of the most probable span with its best answer."""
        logits_BT2 = read(model, params, batch, key).logits
        weights_B = batch["answers_BA"].any(axis=1)
        lowest = jnp.finfo(logits_BT2.dtype).min
        logits_2BT = jnp.moveaxis(jnp.where(batch["allowed_BT"][..., None], logits_BT2, lowest), -1, 0)
        targets_2B = jnp.stack([batch["starts_BA"][:, 0], batch["ends_BA"][:, 0]])
        nats_2B = -jnp.take_along_axis(jax.nn.log_softmax(logits_2BT), targets_2B[..., None], axis=-1)[..., 0]

        start_B1, end_B1 = (x[:, None] for x in best_span(*logits_2BT, self.answer_length))
        starts_BA, ends_BA = batch["starts_BA"], batch["ends_BA"]
        common_BA = jnp.maximum(jnp.minimum(end_B1, ends_BA) - jnp.maximum(start_B1, starts_BA) + 1, 0)
        f1_BA = metrics.f1_of(common_BA, end_B1 - start_B1 + 1, ends_BA - starts_BA + 1)
        exact_BA = (start_B1 == starts_BA) & (end_B1 == ends_BA)
        best = lambda x_BA: (x_BA * batch["answers_BA"]).max(axis=1).sum()
        return {
            "nats": jnp.where(weights_B, nats_2B.mean(0), 0).sum(),
            "exact": best(exact_BA.astype(jnp.float32)),
            "f1": best(f1_BA),
        }

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a window, the mean of start and end."""
        return sums["nats"] / jnp.maximum(counts["windows"], 1)

    def report(self, sums: Sums, counts: Sums) -> dict[str, jax.Array]:
        """Loss; the share of windows whose span is exactly an answer's; the mean F1 of the tokens in it."""
        count = jnp.maximum(counts["windows"], 1)
        return {"loss": self.loss(sums, counts), "exact_match": sums["exact"] / count, "f1": sums["f1"] / count}


def best_span(start_BT: jax.Array, end_BT: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """int32[B] each: first and last token of the span of at most `length` tokens whose scores add up highest."""
    size = start_BT.shape[1]
    ahead = jnp.arange(size)[None, :] - jnp.arange(size)[:, None]
    scores_BTT = jnp.where((ahead >= 0) & (ahead < length), start_BT[:, :, None] / 2 + end_BT[:, None, :] / 2, -jnp.inf)
    best_B = scores_BTT.reshape(len(start_BT), -1).argmax(axis=1).astype(jnp.int32)
    return best_B // size, best_B % size


def read(model: Any, params: Any, batch: Batch, key: jax.Array | None) -> Any:
    """The model's output for a batch of texts, which are sources to an encoder-decoder; with a key, dropout is on."""
    return model.apply(
        {"params": params},
        batch["tokens_BT"],
        batch.get("segments_BT"),
        batch["valid_BT"],
        **training_mode(key),
        method="read",
    )


def _with_labels(objective: Any, config: Any, of_data: tuple[str, ...] | None) -> tuple[Any, Any]:
    """Objective and model with the names of the classes: the objective's own, the data's, or else the model's.

    Raises:
        ValueError: data or model have names other than these, and not merely numbers.
    """
    of_model = getattr(config, "labels", ())
    labels = objective.labels or of_data or of_model
    for owner, names in (("data", of_data or ()), ("model", of_model)):
        if _named(names) and names != labels:
            raise ValueError(
                f"the classes are {', '.join(labels)}, and those of the {owner} are {', '.join(names)}: leave "
                "model.labels and objective.labels at their defaults, or take a model that was made for these"
            )
    objective = dataclasses.replace(objective, labels=labels, by_index=objective.by_index or of_data is not None)
    return objective, dataclasses.replace(config, labels=labels) if hasattr(config, "labels") else config


def _check_classes(logits: jax.Array, labels: tuple[str, ...]) -> None:
    if labels and logits.shape[-1] != len(labels):
        raise ValueError(f"the model has {logits.shape[-1]} classes, and the data {len(labels)}")


def _named(labels: tuple[str, ...]) -> bool:
    """Whether classes have names, and not merely numbers."""
    return any(name not in (str(number), f"LABEL_{number}") for number, name in enumerate(labels))


def _balanced(counts: Mapping[str, int], split: str) -> tuple[float, ...]:
    """A weight for each class, by which all classes weigh the same in a split, 1 on average over its items.

    Raises:
        ValueError: a class does not occur.
    """
    if missing := [name for name, count in counts.items() if not count]:
        raise ValueError(
            f"class_weights is balanced, and the split {split} has no example of "
            f"{json_files.excerpt(', '.join(missing))}: give a number for each class"
        )
    return tuple(sum(counts.values()) / (len(counts) * count) for count in counts.values())


def _positive(weight: jax.Array) -> jax.Array:
    """1 in place of 0, as a divisor."""
    return jnp.where(weight > 0, weight, 1)


def _metrics(confusion_CC: jax.Array) -> dict[str, jax.Array]:
    f1_C = metrics.f1(confusion_CC)
    values = {
        "accuracy": metrics.accuracy(confusion_CC),
        "macro_f1": metrics.macro(f1_C, confusion_CC.sum(0), confusion_CC.sum(1)),
        "matthews": metrics.matthews(confusion_CC),
    }
    return values | ({"f1": f1_C[1]} if len(f1_C) == 2 else {})
