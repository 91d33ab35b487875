"""Objectives: from documents to rows, from a batch to a loss, which is a sum over what counts, and metrics."""

from transformer_zoo.objectives.causal_lm import CausalLM
from transformer_zoo.objectives.masked_lm import MaskedLM
from transformer_zoo.objectives.objective import Objective
from transformer_zoo.objectives.pretraining import Pretraining

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (CausalLM, MaskedLM, Pretraining)}

__all__ = ["OBJECTIVES", "CausalLM", "MaskedLM", "Objective", "Pretraining"]
