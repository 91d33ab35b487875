"""Objectives: from a batch to a loss, which is a sum over what counts, and metrics."""

from transformer_zoo.objectives.causal_lm import CausalLM
from transformer_zoo.objectives.objective import Objective

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (CausalLM,)}

__all__ = ["OBJECTIVES", "CausalLM", "Objective"]
