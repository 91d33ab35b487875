"""Keys of config.json and rows of tensors that Gemma 2 and Gemma 3 share."""

import functools
from collections.abc import Callable
from typing import Any

from transformer_zoo.published import layer_types, llama_layout, rows
from transformer_zoo.published.spec import Key, Published


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
        "global_every": Key(
            "sliding_window_pattern", every, functools.partial(layer_types.every, from_first=False)
        ),
        "logit_cap": Key("final_logit_softcapping", logit_cap),
        "tied": Key("tie_word_embeddings", True),
    }  # fmt: skip


def published(**family: Any) -> Published:
    """The published layout of one of them."""
    return llama_layout.published(
        defaults={"layer_types": None},
        derived={"layer_types": layer_types.of},
        fixed={"use_bidirectional_attention": False} | family.pop("fixed", {}),
        mlp_norm="pre_feedforward_layernorm",
        body=(
            *rows.norm("layers.*.post_attention_layernorm", "blocks/attention_out_norm"),
            *rows.norm("layers.*.post_feedforward_layernorm", "blocks/mlp_out_norm"),
            *family.pop("body", ()),
        ),
        **family,
    )
