"""LongT5: Efficient Text-To-Text Transformer for Long Sequences, Guo et al. 2021: T5 with an encoder whose tokens see
their neighbours and, with transient-global attention, a summary of each block of the text."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from transformer_zoo.nn import Cache, Compute, Embedding, Mask, Output, cache, stack
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import (
    check_choice,
    check_rates,
    check_sizes,
    check_source,
    check_target,
    check_token,
)
from transformer_zoo.nn.encoder_decoder import decoder_stack
from transformer_zoo.nn.positions import across, count, distances, place
from transformer_zoo.nn.pre_norm import DecoderBlock, initializer, mlp, relative_bias, unscaled

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
        check_sizes(self, "vocab_size", "width", "num_layers", "num_decoder_layers", "num_heads", "head_dim", "mlp_dim")
        check_sizes(self, "local_radius", "global_block_size", "num_buckets", "max_distance")
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"num_buckets={self.num_buckets} and max_distance={self.max_distance}: there must be at least 4 "
                "buckets, half of which are for a distance each, and distances beyond these"
            )
        check_activation(self.activation)
        check_rates(self, "dropout")
        for name in ("pad_id", "eos_id", "decoder_start_id"):
            check_token(self, name)


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
    place_BS = count(S, None, documents_BS)
    ends_BS = real_BS & (place_BS % size == size - 1)
    before_BS = jnp.cumsum(ends_BS, axis=1) - ends_BS
    last_BS = jnp.arange(S) + size - 1 - place_BS % size  # of the token's block
    there_BS = jnp.take_along_axis(documents_BS, jnp.minimum(last_BS, S - 1), axis=1) == documents_BS
    whole_BS = (last_BS < S) & there_BS
    summary_BS = jnp.where(whole_BS, before_BS, jnp.where(place_BS >= size, before_BS - 1, -1))
    summary_BS = jnp.where(real_BS, summary_BS, -1)
    documents_BSG = jnp.where(summary_BS[..., None] == jnp.arange(G), documents_BS[..., None], 0)
    return summary_BS, documents_BSG.max(axis=1)


class Model(nn.Module):
    """LongT5, with a language model's output layer for the task `seq2seq-lm` and without for `base`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        self.drop = nn.Dropout(cfg.dropout)
        self.token_embed = Embedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, 1))
        self.encoder_relative_bias = relative_bias(cfg, compute, causal=False)
        if cfg.encoder_attention == "transient-global":
            self.global_relative_bias = relative_bias(cfg, compute, causal=False)
        self.decoder_relative_bias = relative_bias(cfg, compute, causal=True)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute), norm()
        if self.task == "seq2seq-lm" and not cfg.tied:
            self.head = Embedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, cfg.width))

    def __call__(
        self,
        source_BS: jax.Array | None,
        target_BT: jax.Array,
        valid_BS: jax.Array | None = None,
        target_valid_BT: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        target_documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Encodes a source and reads a target, from left to right, beside it.

        Args:
            source_BS: ids, int[B, S]. None: the cache has seen the source.
            target_BT: what the decoder reads, ids, int[B, T]; it begins with `decoder_start_id`.
            valid_BS, target_valid_BT: which tokens are real; the rest is padding, on the left or on the right. None:
                all.
            source_documents_BS, target_documents_BT: number the documents packed in a row, alike on both sides, from 1;
                attention does not cross them.
            cache: of the targets before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, an empty batch, shapes that differ.
        """
        check_target(self.config, target_BT, target_valid_BT, target_documents_BT)
        encoded_BSD = None
        if cache is None or cache.cross is None:
            encoded_BSD = self.encode(source_BS, valid_BS, source_documents_BS, train)
        return self.decode(
            target_BT, encoded_BSD, valid_BS, target_valid_BT, source_documents_BS, target_documents_BT, cache, train
        )

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
        _, mask, cache = place(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = across(target_BT, encoded_BSD, valid_BS, source_documents_BS, target_documents_BT, cache)

        x_BTD = self.drop(self.token_embed(target_BT), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        ahead_BTS = distances(target_BT.shape[1], cache)
        bias_BHTS = self.decoder_relative_bias(ahead_BTS)
        x_BTD, cache = decoder_stack(
            self.decoder_blocks, x_BTD, cache, mask, ahead_BTS, bias_BHTS, start, encoded_BSD, cross_mask, train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        hidden_BTD = self.drop(self.decoder_norm(x_BTD), deterministic=not train)
        return Output(
            hidden_BTD=hidden_BTD,
            logits=self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "seq2seq-lm" else None,
            cache=cache,
            encoded_BSD=encoded_BSD,
        )

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        table = self.token_embed if self.config.tied else self.head
        return table.attend(hidden_BTD * self.config.width**-0.5 if self.config.scale_logits else hidden_BTD)


def hidden(bias_BHTS: jax.Array, seen: jax.Array) -> jax.Array:
    """The bias where something is seen, and where not, as good as minus infinity."""
    return jnp.where(seen, bias_BHTS, jnp.finfo(bias_BHTS.dtype).min)


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for what the decoder reads.

    Raises:
        ValueError: no slots.
    """
    if length < 1:
        raise ValueError(f"a cache of {length} tokens: ask for at least 1")
    return cache.empty(config.num_decoder_layers, batch, length, config.num_heads, config.head_dim, dtype)


def example_inputs(config: Config, task: str) -> tuple[Any, ...]:
    """Inputs of the right shapes for a task, to initialise and to trace."""
    return (jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, 1), jnp.int32))


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {"base": "LongT5Model", "seq2seq-lm": "LongT5ForConditionalGeneration"}
HF_MODEL_TYPE = "longt5"


def _activation(value: str, theirs: Mapping[str, Any]) -> str:
    # Behind a gate, "gelu" has always been the approximation.
    names = {"gated-gelu": "gelu_new", "gated-gelu_python": "gelu"}
    return names.get(value, value.removeprefix("gated-"))


def _write_projection(_: Any, cfg: Config) -> str:
    names = {"gelu_new": "gelu", "gelu": "gelu_python"}
    return "gated-" + names.get(cfg.activation, cfg.activation) if cfg.gated_mlp else cfg.activation


HF_CONFIG = {
    "vocab_size": "vocab_size",
    "width": "d_model",
    "num_layers": "num_layers",
    "num_decoder_layers": (
        "num_decoder_layers",
        lambda layers, theirs: theirs.get("num_layers") if layers is None else layers,
        lambda layers, cfg: layers,
    ),
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "activation": ("feed_forward_proj", _activation, _write_projection),
    "gated_mlp": ("feed_forward_proj", lambda value, theirs: value.startswith("gated-"), _write_projection),
    "encoder_attention": "encoder_attention_type",
    "local_radius": "local_radius",
    "global_block_size": "global_block_size",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
    "init_scale": "initializer_factor",
    "dropout": "dropout_rate",
    "tied": "tie_word_embeddings",
    "scale_logits": (  # before transformers 5 said it, it followed from the tie
        "scale_decoder_outputs",
        lambda value, theirs: theirs["tie_word_embeddings"] if value is None else value,
        lambda scale, cfg: scale,
    ),
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": (
        "decoder_start_token_id",
        lambda start, theirs: theirs["pad_token_id"] if start is None else start,
        lambda start, cfg: start,
    ),
}
HF_DEFAULTS = {
    "num_decoder_layers": None,
    "d_kv": 64,
    "feed_forward_proj": "relu",
    "encoder_attention_type": "local",
    "local_radius": 127,
    "global_block_size": 16,
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
HF_FIXED = {"is_decoder": False}
HF_PREFIX = "transformer."
HF_BARE = ("base", "seq2seq-lm")


def _attention(theirs: str, ours: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{theirs}.q.weight", f"{ours}/query/kernel", "(H K) D -> D H K"),
        (f"{theirs}.k.weight", f"{ours}/key/kernel",   "(H K) D -> D H K"),
        (f"{theirs}.v.weight", f"{ours}/value/kernel", "(H K) D -> D H K"),
        (f"{theirs}.o.weight", f"{ours}/out/kernel",   "D (H K) -> H K D"),
    )  # fmt: skip


HF_WEIGHTS = (
    # theirs                                              ours                                       theirs -> ours
    ("shared.weight",                                     "token_embed/embedding",                     "V D -> V D"),
    ("encoder.block.*.layer.0.layer_norm.weight",         "encoder_blocks/attention_norm/scale",       "D -> D"),
    ("encoder.block.*.layer.1.layer_norm.weight",         "encoder_blocks/mlp_norm/scale",             "D -> D"),
    ("encoder.block.*.layer.1.DenseReluDense.wi_0.weight", "encoder_blocks/mlp_gate/kernel",           "F D -> D F"),
    ("encoder.block.*.layer.1.DenseReluDense.wo.weight",  "encoder_blocks/mlp_down/kernel",            "D F -> F D"),
    ("encoder.final_layer_norm.weight",                   "encoder_norm/scale",                        "D -> D"),
    ("decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
                                                          "decoder_relative_bias/embedding",           "R H -> R H"),
    ("decoder.block.*.layer.0.layer_norm.weight",         "decoder_blocks/attention_norm/scale",       "D -> D"),
    *_attention("decoder.block.*.layer.0.SelfAttention",  "decoder_blocks/attention"),
    ("decoder.block.*.layer.1.layer_norm.weight",         "decoder_blocks/cross_attention_norm/scale", "D -> D"),
    *_attention("decoder.block.*.layer.1.EncDecAttention", "decoder_blocks/cross_attention"),
    ("decoder.block.*.layer.2.layer_norm.weight",         "decoder_blocks/mlp_norm/scale",             "D -> D"),
    ("decoder.block.*.layer.2.DenseReluDense.wi_0.weight", "decoder_blocks/mlp_gate/kernel",           "F D -> D F"),
    ("decoder.block.*.layer.2.DenseReluDense.wo.weight",  "decoder_blocks/mlp_down/kernel",            "D F -> F D"),
    ("decoder.final_layer_norm.weight",                   "decoder_norm/scale",                        "D -> D"),
)  # fmt: skip


def hf_weights(config: Config) -> tuple[tuple[str, str, str], ...]:
    """The rows of a configuration, whose attention and whose gate tell how tensors are called."""
    up = "wi_1" if config.gated_mlp else "wi"
    kind = {"local": "Local", "transient-global": "TransientGlobal"}[config.encoder_attention]
    theirs = f"layer.0.{kind}SelfAttention"
    return (
        *HF_WEIGHTS,
        *_attention(f"encoder.block.*.{theirs}", "encoder_blocks/attention"),
        (f"encoder.block.0.{theirs}.relative_attention_bias.weight", "encoder_relative_bias/embedding", "R H -> R H"),
        (
            f"encoder.block.0.{theirs}.global_relative_attention_bias.weight",
            "global_relative_bias/embedding",
            "R H -> R H",
        ),
        (f"encoder.block.*.{theirs}.global_input_layer_norm.weight", "encoder_blocks/global_norm/scale", "D -> D"),
        (f"encoder.block.*.layer.1.DenseReluDense.{up}.weight", "encoder_blocks/mlp_up/kernel", "F D -> D F"),
        (f"decoder.block.*.layer.2.DenseReluDense.{up}.weight", "decoder_blocks/mlp_up/kernel", "F D -> D F"),
    )


HF_HEADS = {"seq2seq-lm": (("lm_head.weight", "head/embedding", "V D -> V D"),)}
HF_TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
HF_TIED_BY_TENSORS = True
HF_IGNORE = (
    (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        "a table of the first checkpoints, which was never read: across, there are no distances",
    ),
)
