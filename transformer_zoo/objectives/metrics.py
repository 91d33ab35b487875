"""Metrics of classifiers, from sums that add up over batches, for arrays of NumPy and of JAX."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = Any
"""Of NumPy or JAX: only operators are used, so that sums in float64 stay so where JAX has no float64."""


def confusion(targets: jax.Array, guesses: jax.Array, weights: jax.Array, classes: int) -> jax.Array:
    """float32[C, C]: the confusion matrix: true classes (first) by predicted ones (second).

    Args:
        targets, guesses: classes, integers of one shape.
        weights: 0 or 1, of the same shape.
    """
    true, guessed = (jax.nn.one_hot(x.reshape(-1), classes, dtype=jnp.float32) for x in (targets, guesses))
    return (true * weights.reshape(-1, 1)).T @ guessed


def accuracy(confusion_CC: Array) -> Array:
    """The share of correct predictions; for classes that exclude one another, also the micro-averaged F1."""
    return confusion_CC.trace() / _at_least_one(confusion_CC.sum())


def f1(confusion_CC: Array) -> Array:
    """[C]: the harmonic mean of precision and recall of each class; 0 for one that neither occurs nor is predicted."""
    return f1_of(confusion_CC.diagonal(), confusion_CC.sum(0), confusion_CC.sum(1))


def f1_of(right: Array, guessed: Array, true: Array) -> Array:
    """The harmonic mean of precision and recall, from the numbers of true positives, predictions and positives."""
    return 2 * right / _at_least_one(guessed + true)


def macro(f1_C: Array, guessed_C: Array, true_C: Array) -> Array:
    """The mean over the classes that occur or are predicted."""
    return f1_C.sum() / _at_least_one(((guessed_C + true_C) > 0).sum())


def matthews(confusion_CC: Array) -> Array:
    """The correlation of true and predicted classes (Matthews 1975; for several classes Gorodkin 2004): 0 is chance."""
    guessed, true, total = confusion_CC.sum(0), confusion_CC.sum(1), confusion_CC.sum()
    covariance = confusion_CC.trace() * total - (guessed * true).sum()
    spread = (total**2 - (guessed**2).sum()) * (total**2 - (true**2).sum())
    return covariance / _positive(spread) ** 0.5


def pearson(count: Array, x: Array, y: Array, xx: Array, yy: Array, xy: Array) -> Array:
    """The correlation of x and y, from the number of pairs and the sums of x, y, x^2, y^2 and xy."""
    spread = (count * xx - x**2) * (count * yy - y**2)
    return (count * xy - x * y) / _positive(spread) ** 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class ByClass:
    """The measures of each class over a whole split."""

    labels: tuple[str, ...]
    right_C: np.ndarray
    """Correct predictions of each class."""
    guessed_C: np.ndarray
    """Predictions."""
    true_C: np.ndarray
    """Examples, or tokens."""
    confusion_CC: np.ndarray | None = None
    """The confusion matrix, true classes first; None if an example may have several classes."""

    @classmethod
    def of(cls, labels: tuple[str, ...], confusion_CC: Array) -> "ByClass":
        """From a confusion matrix."""
        confusion_CC = np.asarray(confusion_CC)
        return cls(labels, confusion_CC.diagonal(), confusion_CC.sum(0), confusion_CC.sum(1), confusion_CC)

    def measures(self) -> dict[str, dict[str, float]]:
        """Precision, recall, F1 and support (examples, or tokens) of each class; a share of nothing is 0."""
        right, guessed, true = self.right_C, self.guessed_C, self.true_C
        shares = (right / _at_least_one(guessed), right / _at_least_one(true), f1_of(right, guessed, true))
        rows = zip(self.labels, *shares, true, strict=True)
        return {
            label: {"precision": float(p), "recall": float(r), "f1": float(f1), "support": int(count)}
            for label, p, r, f1, count in rows
        }

    def record(self) -> dict[str, Any]:
        """All of it, for JSON: `classes`, and `confusion`, whose rows are the true classes."""
        confusion = {} if self.confusion_CC is None else {"confusion": self.confusion_CC.astype(int).tolist()}
        return {"classes": self.measures(), **confusion}


def _at_least_one(x: Array) -> Array:
    """1 in place of 0, as a divisor of counts."""
    return x + (x == 0)


def _positive(x: Array) -> Array:
    """1 in place of what is not positive, as the divisor of a covariance, which is 0 there too."""
    return x * (x > 0) + (x <= 0)
