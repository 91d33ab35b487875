"""Keys of config.json and rows of tensors that T5 and its relatives share."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.published import rows
from transformer_zoo.published.spec import Key, first_id


def mlp_keys(
    default: str | None, projection: Callable[[Any, Mapping[str, Any]], str] = lambda value, settings: value
) -> dict[str, Key]:
    """The fields of the MLP, which are both read from its name: an activation, with "gated-" in front if it is gated.

    Args:
        default: the name in a file without the key.
        projection: (the key's value, all settings of the file) -> the name.
    """
    key = functools.partial(Key, "feed_forward_proj", default, write=_write_projection)
    return {
        "activation": key(read=lambda value, settings: _activation(projection(value, settings))),
        "gated_mlp": key(read=lambda value, settings: projection(value, settings).startswith("gated-")),
    }


def _activation(projection: str) -> str:
    # With a gate, "gelu" has always been the approximation by tanh.
    names = {"gated-gelu": "gelu_new", "gated-gelu_python": "gelu"}
    return names.get(projection, projection.removeprefix("gated-"))


def _write_projection(_: Any, config: Any) -> str:
    names = {"gelu_new": "gelu", "gelu": "gelu_python"}
    return "gated-" + names.get(config.activation, config.activation) if config.gated_mlp else config.activation


def _key_or(name: str, other: str) -> Key:
    """A key that may be missing or null, and then has the value of another key."""

    def read(value: Any, settings: Mapping[str, Any]) -> Any:
        return settings.get(other) if value is None else value

    return Key(name, None, read)


CONFIG = {
    "vocab_size": Key("vocab_size"),
    "width": Key("d_model"),
    "num_layers": Key("num_layers"),
    "num_decoder_layers": _key_or("num_decoder_layers", "num_layers"),
    "num_heads": Key("num_heads"),
    "head_dim": Key("d_kv", 64),
    "mlp_dim": Key("d_ff"),
    "num_buckets": Key("relative_attention_num_buckets", 32),
    "max_distance": Key("relative_attention_max_distance", 128),
    "norm_epsilon": Key("layer_norm_epsilon", 1e-6),
    "init_scale": Key("initializer_factor", 1.0),
    "dropout": Key("dropout_rate", 0.1),
    "tied": Key("tie_word_embeddings", True),
    # From transformers 5 on a key of its own.
    "scale_logits": _key_or("scale_decoder_outputs", "tie_word_embeddings"),
    "pad_id": Key("pad_token_id", 0),
    "eos_id": Key("eos_token_id", 1, first_id),
    "decoder_start_id": _key_or("decoder_start_token_id", "pad_token_id"),
}


def attention(theirs: str, ours: str) -> rows.Rows:
    """The four projections of attention."""
    return rows.attention(theirs, ours, "q k v", f"{theirs}.o")


def mlp_up(gated: bool) -> rows.Rows:
    """The input projections of the MLPs, whose name depends on whether there is a gate, `wi_0`."""
    up = "wi_1" if gated else "wi"
    return (
        *rows.dense(f"encoder.block.*.layer.1.DenseReluDense.{up}", "encoder_blocks/mlp_up"),
        *rows.dense(f"decoder.block.*.layer.2.DenseReluDense.{up}", "decoder_blocks/mlp_up"),
    )


BIAS = "relative_attention_bias"
# All but the encoder's attention and `mlp_up`.
BODY = (
    *rows.embedding("shared", "token_embed", "V"),
    *rows.norm("encoder.block.*.layer.0.layer_norm", "encoder_blocks/attention_norm"),
    *rows.norm("encoder.block.*.layer.1.layer_norm", "encoder_blocks/mlp_norm"),
    *rows.dense("encoder.block.*.layer.1.DenseReluDense.wi_0", "encoder_blocks/mlp_gate"),
    *rows.dense("encoder.block.*.layer.1.DenseReluDense.wo", "encoder_blocks/mlp_down"),
    *rows.norm("encoder.final_layer_norm", "encoder_norm"),
    *rows.embedding(f"decoder.block.0.layer.0.SelfAttention.{BIAS}", "decoder_relative_bias"),
    *rows.norm("decoder.block.*.layer.0.layer_norm", "decoder_blocks/attention_norm"),
    *attention("decoder.block.*.layer.0.SelfAttention", "decoder_blocks/attention"),
    *rows.norm("decoder.block.*.layer.1.layer_norm", "decoder_blocks/cross_attention_norm"),
    *attention("decoder.block.*.layer.1.EncDecAttention", "decoder_blocks/cross_attention"),
    *rows.norm("decoder.block.*.layer.2.layer_norm", "decoder_blocks/mlp_norm"),
    *rows.dense("decoder.block.*.layer.2.DenseReluDense.wi_0", "decoder_blocks/mlp_gate"),
    *rows.dense("decoder.block.*.layer.2.DenseReluDense.wo", "decoder_blocks/mlp_down"),
    *rows.norm("decoder.final_layer_norm", "decoder_norm"),
)
LANGUAGE_MODEL = {"seq2seq-lm": rows.embedding("lm_head", "head", "V")}
UNREAD_BIAS = (
    (
        rf"decoder\.block\.0\.layer\.1\.EncDecAttention\.{BIAS}\.weight",
        "a table in the first checkpoints that was never read: cross-attention has no distances",
    ),
)
