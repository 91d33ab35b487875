"""Objectives: the rows they read, their losses, and their metrics."""

from transformer_zoo.objectives.causal_lm import CausalLM
from transformer_zoo.objectives.classification import QuestionAnswering, SequenceClassification, TokenClassification
from transformer_zoo.objectives.conversations import SupervisedFineTuning
from transformer_zoo.objectives.distillation import Distillation
from transformer_zoo.objectives.masked_lm import MaskedLM
from transformer_zoo.objectives.objective import Objective
from transformer_zoo.objectives.pretraining import Pretraining
from transformer_zoo.objectives.replaced_tokens import ReplacedTokens
from transformer_zoo.objectives.seq2seq import (
    GapSentences,
    MixtureOfDenoisers,
    PrefixLM,
    Seq2SeqLM,
    SpanCorruption,
    TextInfilling,
)

KINDS = (
    CausalLM, SupervisedFineTuning, MaskedLM, Pretraining, ReplacedTokens, Distillation,
    SequenceClassification, TokenClassification, QuestionAnswering,
    Seq2SeqLM, SpanCorruption, PrefixLM, MixtureOfDenoisers, TextInfilling, GapSentences,
)  # fmt: skip
OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in KINDS}

__all__ = [
    "OBJECTIVES",
    "CausalLM",
    "Distillation",
    "GapSentences",
    "MaskedLM",
    "MixtureOfDenoisers",
    "Objective",
    "PrefixLM",
    "Pretraining",
    "QuestionAnswering",
    "ReplacedTokens",
    "Seq2SeqLM",
    "SequenceClassification",
    "SpanCorruption",
    "SupervisedFineTuning",
    "TextInfilling",
    "TokenClassification",
]
