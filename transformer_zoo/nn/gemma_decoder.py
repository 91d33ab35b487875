"""Gemma's decoder: LLaMA's with embeddings times sqrt(D) and norms that scale by 1 + w (Gemma Team 2024, and the code
released with it)."""

import functools
from typing import Any

import jax

from transformer_zoo.nn.rotary_decoder import RotaryBlock, RotaryDecoder


class GemmaBlock(RotaryBlock):
    """With norms that scale by 1 + w."""

    @property
    def norm(self) -> Any:
        return functools.partial(self.compute.offset_rms_norm, epsilon=self.config.norm_epsilon)

    def attention_settings(self) -> dict[str, Any]:
        return {"use_bias": self.config.attention_bias}


class GemmaDecoder(RotaryDecoder):
    """With embeddings times sqrt(D)."""

    block: Any = GemmaBlock

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        return super().embed(tokens_BT, positions_BT, train) * self.config.width**0.5
