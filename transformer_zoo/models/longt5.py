"""LongT5: Efficient Text-To-Text Transformer for Long Sequences, Guo et al. 2021: T5 with an encoder whose tokens
attend to their neighbours and, with transient-global attention, to a summary of each block of the text."""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.nn import Compute, Mask, pre_norm
from transformer_zoo.nn.positions import positions_of
from transformer_zoo.published import Key, Published, bart_layout, rows, t5_layout

init_cache = pre_norm.init_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pre_norm.PreNormConfig):
    """The architecture, by default of the base size. The other fields are those of `nn.pre_norm.PreNormConfig`."""

    encoder_attention: Literal["local", "transient-global"] = "transient-global"
    local_radius: int = 127  # tokens that a token of the source attends to on each side
    global_block_size: int = 16  # tokens in a block that transient-global attention summarises
    scale_logits: bool = False
    width: int = 768
    num_layers: int = 12
    num_decoder_layers: int = 12
    num_heads: int = 12
    activation: str = "gelu_new"
    gated_mlp: bool = True


_LARGE = {"width": 1024, "mlp_dim": 2816, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 16}
_XL = {"width": 2048, "mlp_dim": 5120, "num_layers": 24, "num_decoder_layers": 24, "num_heads": 32}
_LOCAL = {"encoder_attention": "local"}
PRESETS = {
    "long-t5-local-base": ("google/long-t5-local-base", Config(**_LOCAL)),
    "long-t5-local-large": ("google/long-t5-local-large", Config(**_LARGE, **_LOCAL)),
    "long-t5-tglobal-base": ("google/long-t5-tglobal-base", Config()),
    "long-t5-tglobal-large": ("google/long-t5-tglobal-large", Config(**_LARGE)),
    "long-t5-tglobal-xl": ("google/long-t5-tglobal-xl", Config(**_XL)),
}


@struct.dataclass
class View:
    """The keys that each token of a source attends to, in all layers. Rows are cut into N blocks of R tokens, one more
    than local_radius; X = B N blocks in all.

    Attributes:
        bias_XHRS: added to the scores of a block's tokens; for keys that they do not attend to, the lowest number. S:
            the tokens of the previous block, of this one and of the next, and then the summaries.
        members_BSG: which tokens each of G summaries is the sum of. None: there are no summaries.
    """

    bias_XHRS: jax.Array
    members_BSG: jax.Array | None


class EncoderBlock(nn.Module):
    """x + attention(norm(x)) to the neighbours and to the summaries of the text, the sums of norm(x) over its blocks,
    which every layer computes anew (section 3.2); then x + mlp(norm(x))."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(self, x_BSD: jax.Array, layer: None, view: View, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, R = self.config, self.compute, self.config.local_radius + 1
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = pre_norm.t5_attention(cfg, compute, "attention")

        h_BSD = norm(name="attention_norm")(x_BSD)
        kv = [around(part, R) for part in attention.keys_values(h_BSD)]
        if view.members_BSG is not None:
            sums_BGD = jnp.einsum("BSG,BSD->BGD", view.members_BSG.astype(h_BSD.dtype), h_BSD)
            summaries = attention.keys_values(norm(name="global_norm")(sums_BGD))
            every = lambda part: jnp.repeat(part, len(view.bias_XHRS) // len(part), axis=0)  # for each block of a row
            kv = [jnp.concatenate([near, every(part)], axis=1) for near, part in zip(kv, summaries)]
        y_XRD = attention(in_blocks(h_BSD, R), tuple(kv), bias=view.bias_XHRS, scale=1.0, train=train)
        x_BSD += drop(y_XRD.reshape(len(x_BSD), -1, cfg.width)[:, : x_BSD.shape[1]])
        return x_BSD + drop(pre_norm.mlp(cfg, compute, norm(name="mlp_norm")(x_BSD), drop)), None


def in_blocks(x: jax.Array, R: int) -> jax.Array:
    """[B, S, ...] to blocks [B N, R, ...], padded with zeros."""
    rest = x.shape[2:]
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % R), *[(0, 0)] * len(rest))).reshape(-1, R, *rest)


def around(x: jax.Array, R: int) -> jax.Array:
    """[B, S, ...] to [B N, 3R, ...]: each block with the previous and the next one; zeros where there is none."""
    blocks = in_blocks(x, R).reshape(len(x), -1, R, *x.shape[2:])
    padded = jnp.pad(blocks, ((0, 0), (1, 1), *[(0, 0)] * (blocks.ndim - 2)))
    three = jnp.concatenate([padded[:, :-2], blocks, padded[:, 2:]], axis=2)
    return three.reshape(-1, *three.shape[2:])


def summarised(documents_BS: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """The summary that each token belongs to, int32[B, S], -1 for none; and the document of each summary, int32[B, G],
    0 for a summary that does not exist.

    The tokens of a document are divided into blocks of `size`; the rest at the end joins the last block, if there is
    one (section 3.2). Document 0 is padding.
    """
    S = documents_BS.shape[1]
    G = max(1, S // size)
    real_BS = documents_BS > 0
    position_BS = positions_of(S, None, documents_BS)
    ends_BS = real_BS & (position_BS % size == size - 1)
    previous_BS = jnp.cumsum(ends_BS, axis=1) - ends_BS
    last_BS = jnp.arange(S) + size - 1 - position_BS % size  # the last index of the token's block
    inside_BS = jnp.take_along_axis(documents_BS, jnp.minimum(last_BS, S - 1), axis=1) == documents_BS
    whole_BS = (last_BS < S) & inside_BS
    summary_BS = jnp.where(whole_BS, previous_BS, jnp.where(position_BS >= size, previous_BS - 1, -1))
    summary_BS = jnp.where(real_BS, summary_BS, -1)
    documents_BSG = jnp.where(summary_BS[..., None] == jnp.arange(G), documents_BS[..., None], 0)
    return summary_BS, documents_BSG.max(axis=1)


class Model(pre_norm.PreNormTransformer):
    """LongT5, with a language model's output layer for the task `seq2seq-lm` and without for `base`."""

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        self.add_embeddings()
        self.encoder_relative_bias = pre_norm.relative_bias(cfg, compute, causal=False)
        if cfg.encoder_attention == "transient-global":
            self.global_relative_bias = pre_norm.relative_bias(cfg, compute, causal=False)
        self.decoder_relative_bias = pre_norm.relative_bias(cfg, compute, causal=True)
        self.encoder_blocks, self.decoder_blocks = EncoderBlock(cfg, compute), pre_norm.DecoderBlock(cfg, compute)

    def encoder_shared(self, source_BS: jax.Array, mask: Mask) -> tuple[View]:
        documents_BS = jnp.ones_like(source_BS) if mask.documents_BS is None else mask.documents_BS
        return (self.view(documents_BS if mask.valid_BS is None else jnp.where(mask.valid_BS, documents_BS, 0)),)

    def view(self, documents_BS: jax.Array) -> View:
        """The view of these documents; document 0 is padding."""
        cfg, R = self.config, self.config.local_radius + 1
        own_XR, around_XS = in_blocks(documents_BS, R), around(documents_BS, R)
        near = Mask(
            window=2 * cfg.local_radius + 1, offset=R, valid_BS=around_XS > 0,
            documents_BT=own_XR, documents_BS=around_XS,
        )  # fmt: skip
        ahead_1RS = (jnp.arange(3 * R) - R - jnp.arange(R)[:, None])[None]
        bias_XHRS = masked(self.encoder_relative_bias(ahead_1RS), near.dense(R, 3 * R))
        if cfg.encoder_attention == "local":
            return View(bias_XHRS, None)
        summary_BS, documents_BG = summarised(documents_BS, cfg.global_block_size)
        numbers_G = jnp.arange(documents_BG.shape[1])
        bias_BHSG = self.global_relative_bias(numbers_G - summary_BS[..., None])
        same_BSG = (documents_BS[..., None] == documents_BG[:, None]) & (documents_BG[:, None] > 0)
        bias_BSHG = jnp.swapaxes(masked(bias_BHSG, same_BSG[:, None]), 1, 2)
        bias_XHRG = jnp.swapaxes(in_blocks(bias_BSHG, R), 1, 2)
        return View(jnp.concatenate([bias_XHRS, bias_XHRG], axis=-1), summary_BS[..., None] == numbers_G)


def masked(bias_BHTS: jax.Array, mask: jax.Array) -> jax.Array:
    """The bias where the mask is true, and the lowest number elsewhere."""
    return jnp.where(mask, bias_BHTS, jnp.finfo(bias_BHTS.dtype).min)


def _body(config: Config) -> rows.Rows:
    kind = {"local": "Local", "transient-global": "TransientGlobal"}[config.encoder_attention]
    name = f"layer.0.{kind}SelfAttention"
    return (
        *t5_layout.BODY,
        *t5_layout.attention(f"encoder.block.*.{name}", "encoder_blocks/attention"),
        *rows.embedding(f"encoder.block.0.{name}.{t5_layout.BIAS}", "encoder_relative_bias"),
        *rows.embedding(f"encoder.block.0.{name}.global_{t5_layout.BIAS}", "global_relative_bias"),
        *rows.norm(f"encoder.block.*.{name}.global_input_layer_norm", "encoder_blocks/global_norm"),
        *t5_layout.mlp_up(config.gated_mlp),
    )


PUBLISHED = Published(
    model_type="longt5",
    class_prefix="LongT5",
    config=t5_layout.CONFIG | {
        **t5_layout.mlp_keys("relu"),
        "encoder_attention": Key("encoder_attention_type", "local"),
        "local_radius": Key("local_radius", 127),
        "global_block_size": Key("global_block_size", 16),
    },
    fixed={"is_decoder": False},
    prefix="transformer.",
    prefixes=dict.fromkeys(("base", "seq2seq-lm"), ""),
    body=_body,
    heads=t5_layout.LANGUAGE_MODEL,
    tied=bart_layout.TIED,
    tied_by_tensors=True,
    encoder_alone="EncoderModel",
    ignored=t5_layout.UNREAD_BIAS,
)  # fmt: skip
