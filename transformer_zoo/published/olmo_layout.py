"""Keys of config.json and rows of tensors that OLMo 2 and Olmo 3 share."""

from collections.abc import Callable
from typing import Any

from transformer_zoo.published import gguf, llama_layout
from transformer_zoo.published.spec import Key, Published

GGUF_NAMES = gguf.named({**gguf.OUT_NORMS, "blk.*.attn_norm": None, "blk.*.ffn_norm": None})
"""Their tensors in GGUF files."""


def config(make_rope: Callable[..., Any], **rope_defaults: Any) -> dict[str, Key]:
    """The keys that they have. The arguments are those of `rope.keys`."""
    return {
        **llama_layout.config(make_rope, eos_id=50279, longest=2048, **rope_defaults),
        "norm_epsilon": Key("rms_norm_eps", 1e-5),
        "attention_bias": Key("attention_bias", False),
    }


def published(**family: Any) -> Published:
    """The published layout of one of them."""
    return llama_layout.published(
        tasks=("causal-lm", "sequence-classification"),
        body=(
            *llama_layout.OUT_NORMS,
            ("layers.*.self_attn.q_norm.weight", "blocks/attention/query_norm/scale", "(H K) -> H K"),
            ("layers.*.self_attn.k_norm.weight", "blocks/attention/key_norm/scale", "(H K) -> H K"),
        ),
        **family,
    )
