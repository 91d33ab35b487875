"""What each task asks of a model. No other module knows."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What a model for a task returns besides hidden states, and what it takes."""

    vocabulary: bool = False
    """Logits over the vocabulary, of each token."""
    scores: int | str = 0
    """The number of scores that the task's head gives; "labels": one for each label of the configuration."""
    per_token: bool = False
    """The head scores each token; otherwise a vector for the whole row."""
    scores_as_labels: bool = False
    """The reference sizes the head by its number of labels, though the scores are not of labels."""
    choices: bool = False
    """Inputs are [B, C, T]: a row for each choice."""
    encoder_only: bool = False
    """In an encoder-decoder, the encoder alone answers."""
    generates: bool = False
    """The model writes, token by token, with a cache."""

    def num_scores(self, labels: Sequence[str]) -> int:
        """The number of scores for these labels of the configuration; 0: there is no such head."""
        return len(labels) if self.scores == "labels" else self.scores


TASKS = {
    "base": Task(),
    "masked-lm": Task(vocabulary=True),
    "next-sentence": Task(scores=2),
    "pretraining": Task(vocabulary=True, scores=2, scores_as_labels=True),
    "replaced-token-detection": Task(scores=1, per_token=True),
    "causal-lm": Task(vocabulary=True, generates=True),
    "seq2seq-lm": Task(vocabulary=True, generates=True),
    "sequence-classification": Task(scores="labels"),
    "token-classification": Task(scores="labels", per_token=True, encoder_only=True),
    "question-answering": Task(scores=2, per_token=True, scores_as_labels=True),
    "multiple-choice": Task(scores=1, choices=True),
}


def same_scores(one: str, other: str) -> bool:
    """Whether the heads of two tasks score the same: so many scores, of tokens, rows or choices."""
    a, b = TASKS[one], TASKS[other]
    return (a.scores, a.per_token, a.choices) == (b.scores, b.per_token, b.choices)
