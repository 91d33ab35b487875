"""Evaluation of models: the loss on held-out text and what follows from it; BLEU and ROUGE of generated text."""

from transformer_zoo.evaluation.loss import evaluate
from transformer_zoo.evaluation.text import bleu, rouge
from transformer_zoo.evaluation.written import write

__all__ = ["bleu", "evaluate", "rouge", "write"]
