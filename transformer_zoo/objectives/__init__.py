"""Objectives: from a batch to a loss, which is a sum over what counts, and metrics."""

from transformer_zoo.objectives.causal_lm import CausalLM

OBJECTIVES = {"causal-lm": CausalLM}

__all__ = ["OBJECTIVES", "CausalLM"]
