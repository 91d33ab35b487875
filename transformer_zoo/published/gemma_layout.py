"""Keys of config.json and rows of tensors that Gemma 2 and Gemma 3 share."""

from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.published import gguf, layer_types, llama_layout
from transformer_zoo.published.spec import Key, Published

GGUF_NAMES = gguf.named({**gguf.OUT_NORMS, "blk.*.ffn_norm": "model.layers.*.pre_feedforward_layernorm"})
"""Their tensors in GGUF files."""


def gguf_score_dim(largest: int) -> Callable[[Mapping[str, Any], Any], Any]:
    """`query_pre_attn_scalar` of a GGUF file, which lacks it: the size of a head, but for the model of the most layers.

    Args:
        largest: the number of its layers.
    """

    def read(own: Mapping[str, Any], shapes: Any) -> Any:
        return gguf.Gguf.head_dim({**own, "attention.key_length": None} if own.get("block_count") == largest else own)

    return read


def config(
    make_rope: Callable[..., Any], *, longest: int, every: int, logit_cap: float | None, **rope_defaults: Any
) -> dict[str, Key]:
    """The keys that they have.

    Args:
        make_rope: as in `rope.keys`.
        longest: `max_position_embeddings` of a config.json without it.
        every: every how many layers of a config.json without it have no window.
        logit_cap: that of a config.json without one.
    """
    return {
        **llama_layout.config(make_rope, eos_id=1, longest=longest, **rope_defaults),
        "num_kv_heads": Key("num_key_value_heads", 4),
        "head_dim": Key("head_dim", 256),
        "activation": Key("hidden_activation", "gelu_pytorch_tanh"),
        "attention_bias": Key("attention_bias", False),
        "score_dim": Key("query_pre_attn_scalar", 256),
        "window": Key("sliding_window", 4096),
        "global_every": layer_types.alternating(every),
        "logit_cap": Key("final_logit_softcapping", logit_cap),
        "tied": Key("tie_word_embeddings", True),
    }


def published(**family: Any) -> Published:
    """The published layout of one of them."""
    return llama_layout.published(
        **layer_types.ALTERNATING,
        fixed={"use_bidirectional_attention": False} | family.pop("fixed", {}),
        mlp_norm="pre_feedforward_layernorm",
        body=llama_layout.OUT_NORMS + family.pop("body", ()),
        **family,
    )
