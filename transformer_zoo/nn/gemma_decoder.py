"""Gemma's decoder: LLaMA's with embeddings times sqrt(D) and norms that scale by 1 + w (Gemma Team 2024, and the code
released with it). That of Gemma 2 and later: with norms on both sides of each sublayer, layers with and without a
window by turns, and soft caps (Gemma 2, section 2)."""

import dataclasses
import functools
from typing import Any

import jax

from transformer_zoo.nn.checks import check_range
from transformer_zoo.nn.rotary_decoder import RotaryBlock, RotaryConfig, RotaryDecoder


class GemmaBlock(RotaryBlock):
    """With norms that scale by 1 + w."""

    @property
    def norm(self) -> Any:
        return functools.partial(self.compute.offset_rms_norm, epsilon=self.config.norm_epsilon)


class GemmaDecoder(RotaryDecoder):
    """With embeddings times sqrt(D)."""

    block: Any = GemmaBlock

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        return super().embed(tokens_BT, positions_BT, train) * self.config.width**0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlternatingConfig(RotaryConfig):
    """The fields of the families whose layers have a window or none by turns. The defaults are those of Gemma 2's 2B
    model.

    Raises:
        ValueError: as `RotaryConfig`, or a cap of zero.
    """

    vocab_size: int = 256000
    max_length: int = 8192
    width: int = 2304
    num_layers: int = 26
    num_heads: int = 8
    num_kv_heads: int = 4
    head_dim: int = 256
    mlp_dim: int = 9216
    activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    score_dim: int = 256  # attention scores are divided by its square root
    window: int = 4096
    global_every: int = 2  # layers n-1, 2n-1, ... attend to all tokens before; the others, to a window
    logit_cap: float | None = 30.0  # logits of the vocabulary are pressed into (-cap, cap)
    tied: bool = True
    eos_id: int | None = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.logit_cap is not None:
            check_range(self, "logit_cap", above=0)


class AlternatingBlock(GemmaBlock):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    @property
    def scale(self) -> float:
        return self.config.score_dim**-0.5

    def added(self, name: str, y_BTD: jax.Array) -> jax.Array:
        return self.norm(name=f"{name}_out_norm")(y_BTD)


class AlternatingDecoder(GemmaDecoder):
    """With a soft cap of the logits."""

    block: Any = AlternatingBlock

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        table = self.token_embed if self.config.tied else self.head
        return table.attend(hidden_BTD, cap=self.config.logit_cap)
