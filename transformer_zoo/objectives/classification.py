"""Classify texts and tokens, and find answers: the fine-tuning tasks of an encoder (Devlin et al. 2019, section 4)."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from transformer_zoo.config import Data
from transformer_zoo.data.documents import field_of, text_in
from transformer_zoo.data.labelled import AnswerRows, Problem, SequenceRows, TokenRows
from transformer_zoo.objectives import metrics
from transformer_zoo.objectives.objective import Batch, Objective, Sums, training_mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class SequenceClassification(Objective):
    """A class, several classes or a number for each text or pair of texts.

    Raises:
        ValueError: not one or two fields of text.
    """

    name: ClassVar[str] = "sequence-classification"
    task: ClassVar[str] = "sequence-classification"

    texts: tuple[str, ...] = ("text",)
    """Fields of an example with its text, or its two texts."""
    label: str = "label"
    """Field with its class, classes or number."""
    problem: Problem | None = None
    """One class of several; any number of them; or a number (mean squared error). None: the model's, or one class."""
    labels: tuple[str, ...] = ()
    """Names of the classes. Empty: those of the data, or else of the model."""

    def __post_init__(self) -> None:
        if len(self.texts) not in (1, 2):
            raise ValueError(f"SequenceClassification.texts is {self.texts}: it must name one or two fields")

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple[Objective, Any]:
        """Names of the classes from the data, and the problem, in both."""
        problem = self.problem or getattr(config, "problem", None) or "single_label_classification"
        named = (self.label,) if problem == "regression" else classes(self.label)
        objective, config = _with_labels(dataclasses.replace(self, problem=problem), config, named)
        return objective, dataclasses.replace(config, problem=problem) if hasattr(config, "problem") else config

    @property
    def reads(self) -> tuple[str, ...]:
        """The text or texts, and the label."""
        return *self.texts, self.label

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The text or texts."""
        return tuple(text_in(document, name) for name in self.texts)

    def maker(self, data: Data) -> SequenceRows:
        """A row an example."""
        return SequenceRows(
            length=data.length, texts=self.texts, label=self.label, problem=self.problem, labels=self.labels
        )

    def counts(self, batch: Batch) -> Sums:
        """The numbers of examples and of their tokens."""
        return {"examples": batch["valid_BT"].any(axis=1).sum(), "tokens": batch["valid_BT"].sum()}

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
            return _classified(logits_BC, batch["targets_B"], weights_B)
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenClassification(Objective):
    """A class for each span of a text, predicted at its tokens: parts of speech, named entities."""

    name: ClassVar[str] = "token-classification"
    task: ClassVar[str] = "token-classification"

    text: str = "text"
    """Field of an example with its text, or with a list of words."""
    spans: str = "spans"
    """Field with the labels: `start`, `end` and `label` of spans of characters, or one for each word."""
    subwords: Literal["first", "all"] = "first"
    """Which of a span's tokens are classified."""
    labels: tuple[str, ...] = ()
    """Names of the classes. Empty: those of the data, or else of the model."""

    def for_data(self, config: Any, classes: Callable[[str], tuple[str, ...] | None]) -> tuple[Objective, Any]:
        """Names of the classes from the data, in both."""
        return _with_labels(self, config, classes(self.spans))

    @property
    def reads(self) -> tuple[str, ...]:
        """The text and the labels."""
        return self.text, self.spans

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """The text, or the words with spaces between them."""
        text = field_of(document, self.text)
        return (text if isinstance(text, str) else " ".join(text),)

    def maker(self, data: Data) -> TokenRows:
        """As many rows as a text takes."""
        return TokenRows(
            length=data.length, text=self.text, spans=self.spans, subwords=self.subwords, labels=self.labels
        )

    def counts(self, batch: Batch) -> Sums:
        """The numbers of tokens with a label, and of all tokens."""
        return {"judged": batch["judged_BT"].sum(), "tokens": batch["valid_BT"].sum()}

    def sums(self, model: Any, params: Any, batch: Batch, key: jax.Array | None = None) -> Sums:
        """Nats and confusion matrix over the tokens with a label."""
        logits_BTC = read(model, params, batch, key).logits
        _check_classes(logits_BTC, self.labels)
        return _classified(logits_BTC, batch["targets_BT"], batch["judged_BT"])

    def loss(self, sums: Sums, counts: Sums) -> jax.Array:
        """Nats a token with a label."""
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
        return self.question, self.context, self.answers

    def texts_of(self, document: dict[str, Any]) -> tuple[str, ...]:
        """Question and context."""
        return text_in(document, self.question), text_in(document, self.context)

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
        named = any(name not in (str(number), f"LABEL_{number}") for number, name in enumerate(names))
        if named and names != labels:
            raise ValueError(
                f"the classes are {', '.join(labels)}, and those of the {owner} are {', '.join(names)}: leave "
                "model.labels and objective.labels at their defaults, or take a model that was made for these"
            )
    objective = dataclasses.replace(objective, labels=labels)
    return objective, dataclasses.replace(config, labels=labels) if hasattr(config, "labels") else config


def _check_classes(logits: jax.Array, labels: tuple[str, ...]) -> None:
    if labels and logits.shape[-1] != len(labels):
        raise ValueError(f"the model has {logits.shape[-1]} classes, and the data {len(labels)}")


def _classified(logits: jax.Array, targets: jax.Array, weights: jax.Array) -> Sums:
    """Nats and confusion matrix of logits [..., C] against targets [...]."""
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return {
        "nats": jnp.where(weights, nats, 0).sum(),
        "confusion_CC": metrics.confusion(targets, logits.argmax(axis=-1), weights, logits.shape[-1]),
    }


def _metrics(confusion_CC: jax.Array) -> dict[str, jax.Array]:
    f1_C = metrics.f1(confusion_CC)
    values = {
        "accuracy": metrics.accuracy(confusion_CC),
        "macro_f1": metrics.macro(f1_C, confusion_CC.sum(0), confusion_CC.sum(1)),
        "matthews": metrics.matthews(confusion_CC),
    }
    return values | ({"f1": f1_C[1]} if len(f1_C) == 2 else {})
