"""Cohere's decoder: attention and MLP in parallel behind one layer norm without bias, rotary positions of interleaved
pairs, and logits times a constant (the code released with Command R, 2024)."""

import dataclasses
import functools
from typing import Any

import jax

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LanguageModelConfig, RotaryBlock, RotaryDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class CohereConfig(LanguageModelConfig):
    """The fields of its families. The defaults are those of Command R7B."""

    vocab_size: int = 256000
    max_length: int = 132096
    num_kv_heads: int = 8
    head_dim: int = 128
    mlp_dim: int = 14336
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(theta=50000.0, interleaved=True)
    attention_bias: bool = False
    attention_dropout: float = 0.0
    logit_scale: float = 0.25
    tied: bool = True
    eos_id: int | None = 255001


class CohereBlock(RotaryBlock):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm."""

    @property
    def norm(self) -> Any:
        return functools.partial(self.compute.layer_norm, epsilon=self.config.norm_epsilon, use_bias=False)

    @property
    def parallel(self) -> bool:
        return True

    @property
    def shares_norm(self) -> bool:
        return True


class CohereDecoder(RotaryDecoder):
    """With logits times a constant."""

    block: Any = CohereBlock

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return super().logits(hidden_BTD * self.config.logit_scale)
