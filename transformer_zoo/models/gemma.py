"""Gemma: Open Models Based on Gemini Research and Technology, Gemma Team 2024."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from transformer_zoo.nn.gemma_decoder import GemmaDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, init_cache
from transformer_zoo.published import Key, gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`."""

    vocab_size: int = 256000
    max_length: int = 8192
    width: int = 3072
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 16
    head_dim: int = 256
    mlp_dim: int = 24576
    # Without "gelu", by which its files mean the tanh approximation.
    activation: Literal["gelu_pytorch_tanh", "gelu_new", "relu", "silu", "tanh"] = "gelu_pytorch_tanh"
    attention_bias: bool = False
    head_dropout: float = 0.1  # of token classification
    tied: bool = True
    eos_id: int | None = 1


PRESETS = {
    "gemma-2b": ("google/gemma-2b", Config(width=2048, num_layers=18, num_heads=8, num_kv_heads=1, mlp_dim=16384)),
    "gemma-7b": ("google/gemma-7b", Config()),
}


class Model(GemmaDecoder):
    """Gemma with the head of a task."""


def _activation(name: Any, settings: Mapping[str, Any]) -> Any:
    return "gelu_pytorch_tanh" if name == "gelu" else name


PUBLISHED = llama_layout.published(
    model_type="gemma",
    class_prefix="Gemma",
    gguf=gguf.Gguf(architecture="gemma", names=gguf.named({"output": None}), changes=gguf.NORMS),
    config={
        **llama_layout.config(Rope, eos_id=1, longest=8192),
        "head_dim": Key("head_dim", 256),
        "num_kv_heads": Key("num_key_value_heads", 16),
        "activation": Key("hidden_act", "gelu_pytorch_tanh", _activation),
        "attention_bias": Key("attention_bias", False),
        "tied": Key("tie_word_embeddings", True),
    },
    fixed={"use_bidirectional_attention": False},
)
