"""Objectives: a batch to a loss, which is a sum over real tokens, and metrics."""
