"""LongT5: Efficient Text-To-Text Transformer for Long Sequences, Guo et al. 2021: T5 with an encoder whose tokens see
their neighbours and, with transient-global attention, a summary of each block of the text."""

import dataclasses
import functools
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.nn import Compute, Mask, TokenEmbedding, stack
from transformer_zoo.nn.checks import check_choice, check_sizes, check_source
from transformer_zoo.nn.encoder_decoder import TIED
from transformer_zoo.nn.encoder_decoder import example_inputs as example_inputs
from transformer_zoo.nn.positions import positions_of
from transformer_zoo.nn.pre_norm import (
    CONFIG,
    DEFAULTS,
    IGNORE,
    OUTPUT_WEIGHTS,
    WEIGHTS,
    DecoderBlock,
    PreNormDecoding,
    attention_rows,
    check_config,
    initializer,
    mlp,
    mlp_rows,
    read_activation,
    relative_bias,
    unscaled,
    write_projection,
)
from transformer_zoo.nn.pre_norm import init_cache as init_cache

ATTENTIONS = ("local", "transient-global")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, too few buckets of distances, an unknown activation or attention, no rate of dropout,
            a special token outside of the vocabulary.
    """

    vocab_size: int = 32128
    width: int = 768
    num_layers: int = 12  # of the encoder
    num_decoder_layers: int = 12
    num_heads: int = 12
    head_dim: int = 64
    mlp_dim: int = 2048
    activation: str = "gelu_new"
    gated_mlp: bool = True
    encoder_attention: str = "transient-global"  # or only local
    local_radius: int = 127  # a token of the source sees so many on each side
    global_block_size: int = 16  # tokens that are summed up as one, with transient-global attention
    num_buckets: int = 32  # of distances
    max_distance: int = 128  # from here on they share a bucket
    norm_epsilon: float = 1e-6
    init_scale: float = 1.0  # all fresh weights are multiplied with it
    dropout: float = 0.1
    tied: bool = True  # the output layer is the table of token embeddings
    scale_logits: bool = False  # by the root of the width: hidden states are divided by it before the output layer
    pad_id: int = 0
    eos_id: int | None = 1
    decoder_start_id: int = 0

    max_length: ClassVar[int | None] = None  # any: only distances count

    def __post_init__(self) -> None:
        check_choice(self, "encoder_attention", ATTENTIONS)
        check_config(self)
        check_sizes(self, "local_radius", "global_block_size")


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
    """What the tokens of a source see, the same for every layer. Rows are cut into N blocks of R = local_radius + 1
    tokens, X = B N of them in all.

    Attributes:
        bias_XHRS: what is added to the scores of a block's tokens; as good as minus infinity for what they do not see.
            S: the tokens of the block before, of this one and of the next, and then the summaries.
        members_BSG: which tokens are summed up, in each of G summaries.
    """

    bias_XHRS: jax.Array
    members_BSG: jax.Array | None


class EncoderBlock(nn.Module):
    """x + attention(norm(x)) to the neighbours and to the summaries of the text, which are the sums of norm(x) over its
    blocks, made anew in every layer (section 3.2); then x + mlp(norm(x))."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(self, x_BSD: jax.Array, layer: None, view: View, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, R = self.config, self.compute, self.config.local_radius + 1
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = unscaled(cfg, compute, "attention")

        h_BSD = norm(name="attention_norm")(x_BSD)
        kv = [around(part, R) for part in attention.keys_values(h_BSD)]
        if view.members_BSG is not None:
            sums_BGD = jnp.einsum("BSG,BSD->BGD", view.members_BSG.astype(h_BSD.dtype), h_BSD)
            summaries = attention.keys_values(norm(name="global_norm")(sums_BGD))
            every = lambda part: jnp.repeat(part, len(view.bias_XHRS) // len(part), axis=0)  # block of a row
            kv = [jnp.concatenate([near, every(part)], axis=1) for near, part in zip(kv, summaries)]
        y_XRD = attention(in_blocks(h_BSD, R), tuple(kv), bias=view.bias_XHRS, scale=1.0, train=train)
        x_BSD += drop(y_XRD.reshape(len(x_BSD), -1, cfg.width)[:, : x_BSD.shape[1]])
        return x_BSD + drop(mlp(cfg, compute, norm(name="mlp_norm")(x_BSD), drop)), None


def in_blocks(x: jax.Array, R: int) -> jax.Array:
    """[B, S, ...] to blocks [B N, R, ...], filled up with zeros."""
    rest = x.shape[2:]
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % R), *[(0, 0)] * len(rest))).reshape(-1, R, *rest)


def around(x: jax.Array, R: int) -> jax.Array:
    """[B, S, ...] to [B N, 3R, ...]: of each block, the one before, itself and the next; zeros where there is none."""
    blocks = in_blocks(x, R).reshape(len(x), -1, R, *x.shape[2:])
    padded = jnp.pad(blocks, ((0, 0), (1, 1), *[(0, 0)] * (blocks.ndim - 2)))
    three = jnp.concatenate([padded[:, :-2], blocks, padded[:, 2:]], axis=2)
    return three.reshape(-1, *three.shape[2:])


def summarised(documents_BS: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Which summary each token goes into, int32[B, S], -1: none; and the document of each summary, int32[B, G], 0:
    there is no such summary.

    The real tokens of a document (those of document 0 are none) make blocks of `size`; those that are left over in the
    end go with the block before, if there is one (section 3.2).
    """
    S = documents_BS.shape[1]
    G = max(1, S // size)
    real_BS = documents_BS > 0
    place_BS = positions_of(S, None, documents_BS)
    ends_BS = real_BS & (place_BS % size == size - 1)
    before_BS = jnp.cumsum(ends_BS, axis=1) - ends_BS
    last_BS = jnp.arange(S) + size - 1 - place_BS % size  # of the token's block
    there_BS = jnp.take_along_axis(documents_BS, jnp.minimum(last_BS, S - 1), axis=1) == documents_BS
    whole_BS = (last_BS < S) & there_BS
    summary_BS = jnp.where(whole_BS, before_BS, jnp.where(place_BS >= size, before_BS - 1, -1))
    summary_BS = jnp.where(real_BS, summary_BS, -1)
    documents_BSG = jnp.where(summary_BS[..., None] == jnp.arange(G), documents_BS[..., None], 0)
    return summary_BS, documents_BSG.max(axis=1)


class Model(PreNormDecoding):
    """LongT5, with a language model's output layer for the task `seq2seq-lm` and without for `base`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        self.drop = nn.Dropout(cfg.dropout)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, 1))
        self.encoder_relative_bias = relative_bias(cfg, compute, causal=False)
        if cfg.encoder_attention == "transient-global":
            self.global_relative_bias = relative_bias(cfg, compute, causal=False)
        self.decoder_relative_bias = relative_bias(cfg, compute, causal=True)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute), norm()
        if self.task == "seq2seq-lm" and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, cfg.width))

    def encode(
        self,
        source_BS: jax.Array,
        valid_BS: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The source, read as a whole: [B, S, D]."""
        cfg = self.config
        check_source(cfg, source_BS, valid_BS, source_documents_BS)
        documents_BS = jnp.ones_like(source_BS) if source_documents_BS is None else source_documents_BS
        documents_BS = documents_BS if valid_BS is None else jnp.where(valid_BS, documents_BS, 0)
        x_BSD = self.drop(self.token_embed(source_BS), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        x_BSD, _ = stack(
            self.encoder_blocks, x_BSD, None, self.view(documents_BS), train,
            length=cfg.num_layers, compute=self.compute,
        )  # fmt: skip
        return self.drop(self.encoder_norm(x_BSD), deterministic=not train)

    def view(self, documents_BS: jax.Array) -> View:
        """What the tokens of these documents see; there is none of number 0."""
        cfg, R = self.config, self.config.local_radius + 1
        own_XR, around_XS = in_blocks(documents_BS, R), around(documents_BS, R)
        near = Mask(
            window=2 * cfg.local_radius + 1, offset=R, valid_BS=around_XS > 0,
            documents_BT=own_XR, documents_BS=around_XS,
        )  # fmt: skip
        ahead_1RS = (jnp.arange(3 * R) - R - jnp.arange(R)[:, None])[None]
        bias_XHRS = hidden(self.encoder_relative_bias(ahead_1RS), near.dense(R, 3 * R))
        if cfg.encoder_attention == "local":
            return View(bias_XHRS, None)
        summary_BS, documents_BG = summarised(documents_BS, cfg.global_block_size)
        numbers_G = jnp.arange(documents_BG.shape[1])
        bias_BHSG = self.global_relative_bias(numbers_G - summary_BS[..., None])
        same_BSG = (documents_BS[..., None] == documents_BG[:, None]) & (documents_BG[:, None] > 0)
        bias_BSHG = jnp.swapaxes(hidden(bias_BHSG, same_BSG[:, None]), 1, 2)
        bias_XHRG = jnp.swapaxes(in_blocks(bias_BSHG, R), 1, 2)
        return View(jnp.concatenate([bias_XHRS, bias_XHRG], axis=-1), summary_BS[..., None] == numbers_G)


def hidden(bias_BHTS: jax.Array, seen: jax.Array) -> jax.Array:
    """The bias where something is seen, and where not, as good as minus infinity."""
    return jnp.where(seen, bias_BHTS, jnp.finfo(bias_BHTS.dtype).min)


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {"base": "LongT5Model", "seq2seq-lm": "LongT5ForConditionalGeneration"}
HF_MODEL_TYPE = "longt5"
HF_CONFIG = CONFIG | {
    "activation": ("feed_forward_proj", lambda value, theirs: read_activation(value), write_projection),
    "gated_mlp": ("feed_forward_proj", lambda value, theirs: value.startswith("gated-"), write_projection),
    "encoder_attention": "encoder_attention_type",
    "local_radius": "local_radius",
    "global_block_size": "global_block_size",
}
HF_DEFAULTS = DEFAULTS | {
    "feed_forward_proj": "relu",
    "encoder_attention_type": "local",
    "local_radius": 127,
    "global_block_size": 16,
}
HF_FIXED = {"is_decoder": False}
HF_PREFIX = "transformer."
HF_BARE = ("base", "seq2seq-lm")
HF_WEIGHTS = WEIGHTS


def hf_weights(config: Config) -> tuple[tuple[str, str, str], ...]:
    """The rows of a configuration, whose attention and whose gate tell how tensors are called."""
    kind = {"local": "Local", "transient-global": "TransientGlobal"}[config.encoder_attention]
    theirs = f"layer.0.{kind}SelfAttention"
    return (
        *HF_WEIGHTS,
        *attention_rows(f"encoder.block.*.{theirs}", "encoder_blocks/attention"),
        (f"encoder.block.0.{theirs}.relative_attention_bias.weight", "encoder_relative_bias/embedding", "R H -> R H"),
        (
            f"encoder.block.0.{theirs}.global_relative_attention_bias.weight",
            "global_relative_bias/embedding",
            "R H -> R H",
        ),
        (f"encoder.block.*.{theirs}.global_input_layer_norm.weight", "encoder_blocks/global_norm/scale", "D -> D"),
        *mlp_rows(config.gated_mlp),
    )


HF_HEADS = {"seq2seq-lm": OUTPUT_WEIGHTS}
HF_TIED = TIED
HF_TIED_BY_TENSORS = True
HF_IGNORE = IGNORE
