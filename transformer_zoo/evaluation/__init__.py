"""How good a model is: the loss of held-out text and what follows from it, and what it writes beside what it should."""

from transformer_zoo.evaluation.loss import evaluate
from transformer_zoo.evaluation.text import bleu, rouge
from transformer_zoo.evaluation.written import write

__all__ = ["bleu", "evaluate", "rouge", "write"]
