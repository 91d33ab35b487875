"""Keys of config.json that Cohere's families share."""

from collections.abc import Callable
from typing import Any

from transformer_zoo.published import gguf, llama_layout
from transformer_zoo.published.spec import Key, Published


def config(make_rope: Callable[..., Any]) -> dict[str, Key]:
    """The keys that they have.

    Args:
        make_rope: as in `rope.keys`.
    """
    return {
        **llama_layout.multi_head_config(make_rope, eos_id=255001, longest=8192),
        "num_kv_heads": llama_layout.KV_HEADS,
        "head_dim": llama_layout.HEAD_DIM,
        "norm_epsilon": Key("layer_norm_eps", 1e-5),
        "attention_bias": Key("attention_bias", False),
        "attention_dropout": Key("attention_dropout", 0.0),
        "logit_scale": Key("logit_scale", 0.0625),
        "tied": Key("tie_word_embeddings", True),
    }


def gguf_layout(architecture: str, **family: Any) -> gguf.Gguf:
    """That of their GGUF files."""
    return gguf.Gguf(
        architecture=architecture,
        names=gguf.named({"blk.*.ffn_norm": None, "output": None}),
        keys=gguf.PATTERN | {"attention.layer_norm_epsilon": "layer_norm_eps", "logit_scale": "logit_scale"},
        **family,
    )


def published(**family: Any) -> Published:
    """The published layout of one of them."""
    return llama_layout.published(tasks=("causal-lm",), **family)
