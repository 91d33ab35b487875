"""The blocks of the first encoder-decoder (Vaswani et al. 2017, section 3) and of those that moved its norms, and what
stands over them. A family's Config has the sizes and rates that BART's has."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn import pooling
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_like, concrete
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import padded_vocab
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.stack import stack

NORM_EPSILON = 1e-5


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)); with `norm_first`, x + attention(norm(x)) and x + mlp(norm(x))."""

    config: Any
    compute: Compute
    norm_first: bool
    init: Any

    @nn.compact
    def __call__(self, x_BSD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, (before, behind) = self.config, _norms(self)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = _attention(self, cfg.num_heads, "attention")

        h_BSD = before("attention", x_BSD)
        y_BSD = attention(h_BSD, attention.keys_values(h_BSD), mask=mask, train=train)
        x_BSD = behind("attention", x_BSD + drop(y_BSD))
        return behind("mlp", x_BSD + drop(_mlp(self, cfg.mlp_dim, before("mlp", x_BSD), train))), None


class DecoderBlock(nn.Module):
    """The same with causal attention, and between the two attention to the encoded source."""

    config: Any
    compute: Compute
    norm_first: bool
    init: Any

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, encoded_BSD: jax.Array | None, cross_mask: Mask,
        train: bool,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        cfg, (kv, cross), (before, behind) = self.config, layer, _norms(self)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention, cross_attention = (
            _attention(self, cfg.num_decoder_heads, name) for name in ("attention", "cross_attention")
        )

        h_BTD = before("attention", x_BTD)
        kv_now = caches.append(kv, attention.keys_values(h_BTD), start)
        x_BTD = behind("attention", x_BTD + drop(attention(h_BTD, caches.seen(kv_now), mask=mask, train=train)))

        h_BTD = before("cross_attention", x_BTD)
        cross_now = caches.kept(cross_attention.keys_values(encoded_BSD)) if cross is None else cross
        y_BTD = cross_attention(h_BTD, caches.seen(cross_now), mask=cross_mask, train=train)
        x_BTD = behind("cross_attention", x_BTD + drop(y_BTD))

        x_BTD = behind("mlp", x_BTD + drop(_mlp(self, cfg.mlp_decoder_dim, before("mlp", x_BTD), train)))
        # For the cache, if there is one; what it holds of the source already is not copied.
        return x_BTD, None if kv is None else (kv_now, cross_now if cross is None else None)


def _norms(block: Any) -> tuple[Callable[[str, jax.Array], jax.Array], ...]:
    """What becomes of a layer's input, and of the sum of its input and its output; one of the two is normalised."""
    norm = functools.partial(block.compute.layer_norm, epsilon=NORM_EPSILON)
    normed, same = lambda name, x_BTD: norm(name=f"{name}_norm")(x_BTD), lambda name, x_BTD: x_BTD
    return (normed, same) if block.norm_first else (same, normed)


def _attention(block: Any, num_heads: int, name: str) -> Attention:
    cfg = block.config
    return Attention(
        num_heads, cfg.width // num_heads, block.compute, dropout=cfg.attention_dropout,
        init=block.init, out_init=block.init, name=name,
    )  # fmt: skip


def _mlp(block: Any, mlp_dim: int, x_BTD: jax.Array, train: bool) -> jax.Array:
    cfg, dense = block.config, functools.partial(block.compute.dense, kernel_init=block.init)
    h_BTF = ACTIVATIONS[cfg.activation](dense(mlp_dim, name="mlp_up")(x_BTD))
    h_BTF = nn.Dropout(cfg.activation_dropout, deterministic=not train)(h_BTF)
    return dense(cfg.width, name="mlp_down")(h_BTF)


def decoder_stack(
    block: nn.Module, x_BTD: jax.Array, cache: Cache | None, *shared: Any, length: int, compute: Compute
) -> tuple[jax.Array, Cache | None]:
    """`stack` for the blocks of a decoder: the last x_BTD, and the cache, if there is one, with what they have read."""
    layers = (None, None) if cache is None else (cache.kv, cache.cross)
    x_BTD, new = stack(block, x_BTD, layers, *shared, length=length, compute=compute)
    if cache is None:
        return x_BTD, None
    return x_BTD, cache.replace(kv=new[0], cross=new[1] if cache.cross is None else cache.cross)


class LogitsBias(nn.Module):
    """Adds to the logits of each token a number that published models have, and that is not trained."""

    vocab_size: int
    compute: Compute

    @nn.compact
    def __call__(self, logits_BTV: jax.Array) -> jax.Array:
        shape = (padded_vocab(self.vocab_size),)
        bias_V = self.param("bias", nn.initializers.zeros_init(), shape, self.compute.param_dtype)
        return logits_BTV + jax.lax.stop_gradient(bias_V).astype(logits_BTV.dtype)


# ---- how these blocks are published, by BART and all its kin ---------------------------------------------------------


def _attention_rows(theirs: str, ours: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{theirs}.q_proj.weight",                    f"{ours}/query/kernel",          "(H K) D -> D H K"),
        (f"{theirs}.q_proj.bias",                      f"{ours}/query/bias",            "(H K) -> H K"),
        (f"{theirs}.k_proj.weight",                    f"{ours}/key/kernel",            "(H K) D -> D H K"),
        (f"{theirs}.k_proj.bias",                      f"{ours}/key/bias",              "(H K) -> H K"),
        (f"{theirs}.v_proj.weight",                    f"{ours}/value/kernel",          "(H K) D -> D H K"),
        (f"{theirs}.v_proj.bias",                      f"{ours}/value/bias",            "(H K) -> H K"),
        (f"{theirs}.out_proj.weight",                  f"{ours}/out/kernel",            "D (H K) -> H K D"),
        (f"{theirs}.out_proj.bias",                    f"{ours}/out/bias",              "D -> D"),
        (f"{theirs}_layer_norm.weight",                f"{ours}_norm/scale",            "D -> D"),
        (f"{theirs}_layer_norm.bias",                  f"{ours}_norm/bias",             "D -> D"),
    )  # fmt: skip


def _block_rows(side: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *_attention_rows(f"{side}.layers.*.self_attn", f"{side}_blocks/attention"),
        (f"{side}.layers.*.fc1.weight",                f"{side}_blocks/mlp_up/kernel",  "F D -> D F"),
        (f"{side}.layers.*.fc1.bias",                  f"{side}_blocks/mlp_up/bias",    "F -> F"),
        (f"{side}.layers.*.fc2.weight",                f"{side}_blocks/mlp_down/kernel", "D F -> F D"),
        (f"{side}.layers.*.fc2.bias",                  f"{side}_blocks/mlp_down/bias",  "D -> D"),
        (f"{side}.layers.*.final_layer_norm.weight",   f"{side}_blocks/mlp_norm/scale", "D -> D"),
        (f"{side}.layers.*.final_layer_norm.bias",     f"{side}_blocks/mlp_norm/bias",  "D -> D"),
    )  # fmt: skip


BLOCK_WEIGHTS = (
    *_block_rows("encoder"),
    *_block_rows("decoder"),
    *_attention_rows("decoder.layers.*.encoder_attn", "decoder_blocks/cross_attention"),
)
"""Rows of `HF_WEIGHTS` for `encoder_blocks` and `decoder_blocks`."""


# ---- tasks that judge a source: the decoder reads it once more ------------------------------------------------------

JUDGES = ("sequence-classification", "question-answering")


def shifted(source_BS: jax.Array, valid_BS: jax.Array | None, start: Any) -> jax.Array:
    """The source as a decoder reads it: each token a place later, and in the first real one's place `start`, a token,
    or one for each row, [B, 1]."""
    first_B1 = 0 if valid_BS is None else jnp.argmax(valid_BS, axis=1, keepdims=True)
    return jnp.where(jnp.arange(source_BS.shape[1]) == first_B1, start, jnp.roll(source_BS, 1, axis=1))


def judged(model: Any, output: Output, source_BS: jax.Array, valid_BS: jax.Array | None, train: bool) -> Output:
    """The output with what the head of the model's task says, if that judges: of every token where an answer is looked
    for; of a row, for classification, by the decoder's state at its last end of a text.

    Raises:
        ValueError: for classification, a target that is not as long as the source, or a row in which no text ends.
    """
    if model.task == "question-answering":
        return output.replace(logits=model.head(output.hidden_BTD, train))
    if model.task == "sequence-classification":
        check_like(output.hidden_BTD[..., 0], source_BS, "target_BT")
        ends_BS = text_ends(source_BS, valid_BS, model.config.eos_id)
        return output.replace(logits=model.head(pooling.last(output.hidden_BTD, ends_BS), train))
    return output


def text_ends(source_BS: jax.Array, valid_BS: jax.Array | None, eos_id: int | None) -> jax.Array:
    """bool[B, S]: where a text ends.

    Raises:
        ValueError: a row has no end. (Under jit the ids are not known, and the caller answers for it.)
    """
    ends_BS = source_BS == eos_id if valid_BS is None else (source_BS == eos_id) & valid_BS
    if (found := concrete(ends_BS)) is not None and not found.any(axis=1).all():
        row = found.any(axis=1).argmin()
        raise ValueError(f"row {row} of source_BS has no token {eos_id}, the end of a text, by which it is judged")
    return ends_BS
