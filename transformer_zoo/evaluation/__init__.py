"""How good a model is: the loss of held-out text, and what follows from it."""

from transformer_zoo.evaluation.loss import evaluate

__all__ = ["evaluate"]
