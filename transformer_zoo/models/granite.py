"""Granite 3.0 Language Models, Granite Team 2024; and Granite 3.1 to 3.3: LLaMA with multipliers, as in μP (Yang et al.
2022)."""

import dataclasses
from typing import Any

import jax

from transformer_zoo.nn.checks import check_range
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LanguageModelConfig, RotaryBlock, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageModelConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.rotary_decoder.LanguageModelConfig`.

    Raises:
        ValueError: as `LanguageModelConfig`, or logits divided by zero.
    """

    vocab_size: int = 49152
    max_length: int = 131072
    width: int = 2048
    num_layers: int = 40
    num_kv_heads: int = 8
    mlp_dim: int = 8192
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(theta=10000000.0)
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    embedding_multiplier: float = 12.0
    attention_multiplier: float = 0.015625  # of the scores
    residual_multiplier: float = 0.22  # of what attention and MLP add
    logits_divisor: float = 8.0
    tied: bool = True
    eos_id: int | None = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "logits_divisor", above=0)


_8B = {
    "width": 4096, "mlp_dim": 12800, "attention_multiplier": 0.0078125, "logits_divisor": 16.0,
}  # fmt: skip
_30 = {"max_length": 4096, "rope": Rope()}
_31 = {"rope": Rope(theta=5000000.0)}
PRESETS = {
    "granite-3.0-2b": ("ibm-granite/granite-3.0-2b-base", Config(**_30)),
    "granite-3.0-8b": ("ibm-granite/granite-3.0-8b-base", Config(**_30 | _8B)),
    "granite-3.1-2b": ("ibm-granite/granite-3.1-2b-base", Config(**_31)),
    "granite-3.1-8b": ("ibm-granite/granite-3.1-8b-base", Config(**_31 | _8B)),
    "granite-3.3-2b": ("ibm-granite/granite-3.3-2b-base", Config()),
    "granite-3.3-8b": ("ibm-granite/granite-3.3-8b-base", Config(**_8B)),
}


class Block(RotaryBlock):
    """With multipliers of the scores and of what is added to the residual stream."""

    @property
    def scale(self) -> float:
        return self.config.attention_multiplier

    def added(self, name: str, y_BTD: jax.Array) -> jax.Array:
        return y_BTD * self.config.residual_multiplier


class Model(RotaryDecoder):
    """Granite with the head of a task."""

    block: Any = Block

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        return super().embed(tokens_BT, positions_BT, train) * self.config.embedding_multiplier

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        return super().logits(hidden_BTD / self.config.logits_divisor)


PUBLISHED = llama_layout.published(
    model_type="granite",
    class_prefix="Granite",
    gguf=gguf.Gguf(
        architecture="granite",
        rows=gguf.PAIRS,
        keys={
            "embedding_scale": "embedding_multiplier",
            "attention.scale": "attention_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),  # fmt: skip
    tasks=("causal-lm",),
    config={
        **llama_layout.multi_head_config(Rope, eos_id=2, longest=2048),
        "num_kv_heads": llama_layout.KV_HEADS,
        "norm_epsilon": Key("rms_norm_eps", 1e-6),
        "attention_dropout": Key("attention_dropout", 0.0),
        "attention_bias": Key("attention_bias", False),
        "mlp_bias": Key("mlp_bias", False),
        "embedding_multiplier": Key("embedding_multiplier", 1.0),
        "attention_multiplier": Key("attention_multiplier", 1.0),
        "residual_multiplier": Key("residual_multiplier", 1.0),
        "logits_divisor": Key("logits_scaling", 1.0),
    },
)
