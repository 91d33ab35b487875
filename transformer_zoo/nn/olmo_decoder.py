"""OLMo 2's decoder: LLaMA's with norms of the sublayers' outputs in place of those of their inputs, and norms of
queries and keys (Team OLMo 2024, section 3.1)."""

import dataclasses
import functools
from typing import Any

import jax

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryBlock, RotaryConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class OlmoConfig(RotaryConfig):
    """The fields of OLMo 2 and later. The defaults are those of OLMo 2's 7B model."""

    vocab_size: int = 100352
    max_length: int = 4096
    rope: Rope = Rope(theta=500000.0)
    attention_bias: bool = False
    eos_id: int | None = 100257


class OlmoBlock(RotaryBlock):
    """x + norm(attention(x)), then x + norm(mlp(x)); queries and keys are normalised over all heads together."""

    def attention_settings(self) -> dict[str, Any]:
        all_heads = {"reduction_axes": (-2, -1), "feature_axes": (-2, -1)}
        return super().attention_settings() | {"query_key_norm": functools.partial(self.norm, **all_heads)}

    def read(self, name: str, x_BTD: jax.Array) -> jax.Array:
        return x_BTD

    def added(self, name: str, y_BTD: jax.Array) -> jax.Array:
        return self.norm(name=f"{name}_out_norm")(y_BTD)
