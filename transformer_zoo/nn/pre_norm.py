"""Blocks whose norms come first and only scale, and whose attention knows where tokens stand by a bias of the scores
(Raffel et al. 2020, section 2.1), and what decodes with them. A family's Config has sizes and rates as T5's has."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS, check_activation
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_rates, check_sizes, check_target, check_token
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.encoder_decoder import EncoderDecoder, decoder_stack
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.positions import cross_inputs, decoder_inputs, distances
from transformer_zoo.nn.relative_bias import RelativeBias


class PreNormDecoding(EncoderDecoder):
    """Decodes with the blocks below. A family's `setup` makes what is used here, and its `encode` reads the source."""

    def decode(
        self,
        target_BT: jax.Array,
        encoded_BSD: jax.Array | None,
        valid_BS: jax.Array | None = None,
        target_valid_BT: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        target_documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Reads a target beside an encoded source, of which a cache keeps the keys and values: after the first call
        with it `encoded_BSD` may be None."""
        cfg = self.config
        check_target(cfg, target_BT, target_valid_BT, target_documents_BT)
        start = 0 if cache is None else cache.length
        _, mask, cache = decoder_inputs(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = cross_inputs(
            target_BT, encoded_BSD, valid_BS, source_documents_BS, target_documents_BT, cache
        )

        x_BTD = self.drop(self.token_embed(target_BT), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        ahead_BTS = distances(target_BT.shape[1], cache)
        bias_BHTS = self.decoder_relative_bias(ahead_BTS)
        x_BTD, cache = decoder_stack(
            self.decoder_blocks, x_BTD, cache, mask, ahead_BTS, bias_BHTS, start, encoded_BSD, cross_mask, train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        hidden_BTD = self.drop(self.decoder_norm(x_BTD), deterministic=not train)
        logits_BTV = self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "seq2seq-lm" else None
        return Output(hidden_BTD=hidden_BTD, logits=logits_BTV, cache=cache, encoded_BSD=encoded_BSD)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        table = self.token_embed if self.config.tied else self.head
        return table.attend(hidden_BTD * self.config.width**-0.5 if self.config.scale_logits else hidden_BTD)


def check_config(cfg: Any) -> None:
    """Raises ValueError unless the sizes, rates and special tokens that all these families have can be."""
    check_sizes(cfg, "vocab_size", "width", "num_layers", "num_decoder_layers", "num_heads", "head_dim", "mlp_dim")
    check_sizes(cfg, "num_buckets", "max_distance")
    if cfg.num_buckets < 4 or cfg.max_distance <= cfg.num_buckets // 2:
        raise ValueError(
            f"num_buckets={cfg.num_buckets} and max_distance={cfg.max_distance}: there must be at least 4 "
            "buckets, half of which are for a distance each, and distances beyond these"
        )
    check_activation(cfg.activation)
    check_rates(cfg, "dropout")
    for name in ("pad_id", "eos_id", "decoder_start_id"):
        check_token(cfg, name)


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for what the decoder reads.

    Raises:
        ValueError: no slots.
    """
    if length < 1:
        raise ValueError(f"a cache of {length} tokens: ask for at least 1")
    return caches.empty(config.num_decoder_layers, batch, length, config.num_heads, config.head_dim, dtype)


class DecoderBlock(nn.Module):
    """x + attention(norm(x)), then x + attention(norm(x), encoded source), then x + mlp(norm(x))."""

    config: Any
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, ahead_BTS: jax.Array, bias_BHTS: jax.Array | None, start: Any,
        encoded_BSD: jax.Array | None, cross_mask: Mask, train: bool,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        cfg, compute, (kv, cross) = self.config, self.compute, layer
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention, cross_attention = (unscaled(cfg, compute, name) for name in ("attention", "cross_attention"))

        if bias_BHTS is None:
            bias_BHTS = relative_bias(cfg, compute, causal=True, name="relative_bias")(ahead_BTS)
        h_BTD = norm(name="attention_norm")(x_BTD)
        kv_now = caches.append(kv, attention.keys_values(h_BTD), start)
        x_BTD += drop(
            attention(h_BTD, caches.from_cache_layout(kv_now), mask=mask, bias=bias_BHTS, scale=1.0, train=train)
        )

        cross_now = caches.to_cache_layout(cross_attention.keys_values(encoded_BSD)) if cross is None else cross
        h_BTD = norm(name="cross_attention_norm")(x_BTD)
        x_BTD += drop(
            cross_attention(h_BTD, caches.from_cache_layout(cross_now), mask=cross_mask, scale=1.0, train=train)
        )

        x_BTD += drop(mlp(cfg, compute, norm(name="mlp_norm")(x_BTD), drop))
        # For the cache, if there is one; what it holds of the source already is not copied.
        return x_BTD, None if kv is None else (kv_now, cross_now if cross is None else None)


def unscaled(cfg: Any, compute: Compute, name: str) -> Attention:
    """Attention whose scores are not divided by sqrt(K): fresh queries are as much smaller instead."""
    return Attention(
        cfg.num_heads, cfg.head_dim, compute, use_bias=False, dropout=cfg.dropout,
        init=initializer(cfg, cfg.width), query_init=initializer(cfg, cfg.width * cfg.head_dim),
        out_init=initializer(cfg, cfg.num_heads * cfg.head_dim), name=name,
    )  # fmt: skip


def relative_bias(cfg: Any, compute: Compute, causal: bool, name: str | None = None) -> RelativeBias:
    """The table of what is added to the scores by distance."""
    init = nn.initializers.variance_scaling(cfg.init_scale**2, "fan_avg", "uniform")
    return RelativeBias(cfg.num_buckets, cfg.num_heads, cfg.max_distance, compute, init, causal=causal, name=name)


def mlp(cfg: Any, compute: Compute, x_BTD: jax.Array, drop: nn.Dropout) -> jax.Array:
    """A hidden layer, gated or not (Shazeer 2020), in the scope of the block that calls it."""
    up = functools.partial(compute.dense, cfg.mlp_dim, use_bias=False, kernel_init=initializer(cfg, cfg.width))
    down = compute.dense(cfg.width, use_bias=False, kernel_init=initializer(cfg, cfg.mlp_dim), name="mlp_down")
    act = ACTIVATIONS[cfg.activation]
    if cfg.gated_mlp:
        return down(drop(act(up(name="mlp_gate")(x_BTD)) * up(name="mlp_up")(x_BTD)))
    return down(drop(act(up(name="mlp_up")(x_BTD))))


def initializer(cfg: Any, fan: int) -> Any:
    """A normal distribution of the variance 1/fan, as in Mesh TensorFlow, with which T5 was made."""
    return nn.initializers.normal(cfg.init_scale * fan**-0.5)


# ---- how these models are published, by T5 and its kin ---------------------------------------------------------------


def write_projection(_: Any, cfg: Any) -> str:
    """Their name of the hidden layer: of its activation, with "gated-" before it if there is a gate."""
    names = {"gelu_new": "gelu", "gelu": "gelu_python"}
    return "gated-" + names.get(cfg.activation, cfg.activation) if cfg.gated_mlp else cfg.activation


def read_activation(projection: str) -> str:
    """The activation of a hidden layer, by their name. Behind a gate, "gelu" has always been the approximation."""
    names = {"gated-gelu": "gelu_new", "gated-gelu_python": "gelu"}
    return names.get(projection, projection.removeprefix("gated-"))


def _or_else(other: str) -> tuple[Any, Any]:
    """Reads a field that need not be there, and then is the same as another; writes it."""

    def read(value: Any, theirs: Mapping[str, Any]) -> Any:
        return theirs.get(other) if value is None else value

    return read, lambda value, cfg: value


CONFIG = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "num_layers": "num_layers",
    "num_decoder_layers": ("num_decoder_layers", *_or_else("num_layers")),
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
    "init_scale": "initializer_factor",
    "dropout": "dropout_rate",
    "tied": "tie_word_embeddings",
    "scale_logits": ("scale_decoder_outputs", *_or_else("tie_word_embeddings")),  # which transformers 5 says
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": ("decoder_start_token_id", *_or_else("pad_token_id")),
}
"""Rows of `HF_CONFIG` that all of them have."""
DEFAULTS = {
    "num_decoder_layers": None,
    "d_kv": 64,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "dropout_rate": 0.1,
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": None,
}


def attention_rows(theirs: str, ours: str) -> tuple[tuple[str, str, str], ...]:
    """Rows of `HF_WEIGHTS` for the attention of some blocks."""
    return (
        (f"{theirs}.q.weight", f"{ours}/query/kernel", "(H K) D -> D H K"),
        (f"{theirs}.k.weight", f"{ours}/key/kernel",   "(H K) D -> D H K"),
        (f"{theirs}.v.weight", f"{ours}/value/kernel", "(H K) D -> D H K"),
        (f"{theirs}.o.weight", f"{ours}/out/kernel",   "D (H K) -> H K D"),
    )  # fmt: skip


def mlp_rows(gated: bool) -> tuple[tuple[str, str, str], ...]:
    """The same for a hidden layer, which has another name with a gate beside it."""
    up = "wi_1" if gated else "wi"
    return (
        (f"encoder.block.*.layer.1.DenseReluDense.{up}.weight", "encoder_blocks/mlp_up/kernel", "F D -> D F"),
        (f"decoder.block.*.layer.2.DenseReluDense.{up}.weight", "decoder_blocks/mlp_up/kernel", "F D -> D F"),
    )


WEIGHTS = (
    ("shared.weight",                                     "token_embed/embedding",                     "V D -> V D"),
    ("encoder.block.*.layer.0.layer_norm.weight",         "encoder_blocks/attention_norm/scale",       "D -> D"),
    ("encoder.block.*.layer.1.layer_norm.weight",         "encoder_blocks/mlp_norm/scale",             "D -> D"),
    ("encoder.block.*.layer.1.DenseReluDense.wi_0.weight", "encoder_blocks/mlp_gate/kernel",           "F D -> D F"),
    ("encoder.block.*.layer.1.DenseReluDense.wo.weight",  "encoder_blocks/mlp_down/kernel",            "D F -> F D"),
    ("encoder.final_layer_norm.weight",                   "encoder_norm/scale",                        "D -> D"),
    ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                                                          "decoder_relative_bias/embedding",           "R H -> R H"),
    ("decoder.block.*.layer.0.layer_norm.weight",         "decoder_blocks/attention_norm/scale",       "D -> D"),
    *attention_rows("decoder.block.*.layer.0.SelfAttention", "decoder_blocks/attention"),
    ("decoder.block.*.layer.1.layer_norm.weight",         "decoder_blocks/cross_attention_norm/scale", "D -> D"),
    *attention_rows("decoder.block.*.layer.1.EncDecAttention", "decoder_blocks/cross_attention"),
    ("decoder.block.*.layer.2.layer_norm.weight",         "decoder_blocks/mlp_norm/scale",             "D -> D"),
    ("decoder.block.*.layer.2.DenseReluDense.wi_0.weight", "decoder_blocks/mlp_gate/kernel",           "F D -> D F"),
    ("decoder.block.*.layer.2.DenseReluDense.wo.weight",  "decoder_blocks/mlp_down/kernel",            "D F -> F D"),
    ("decoder.final_layer_norm.weight",                   "decoder_norm/scale",                        "D -> D"),
)  # fmt: skip
"""Rows of `HF_WEIGHTS` for all but how tokens of the source attend to one another, and the hidden layer."""
OUTPUT_WEIGHTS = (("lm_head.weight", "head/embedding", "V D -> V D"),)
IGNORE = (
    (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        "a table of the first checkpoints, which was never read: across, there are no distances",
    ),
)
