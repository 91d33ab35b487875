"""PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization, Zhang et al. 2019."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Cache, Compute, Embedding, Output
from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import (
    check_heads,
    check_rates,
    check_sizes,
    check_source,
    check_target,
    check_token,
)
from transformer_zoo.nn.encoder_decoder import (
    BLOCK_WEIGHTS,
    NORM_EPSILON,
    DecoderBlock,
    EncoderBlock,
    LogitsBias,
    decoder_stack,
)
from transformer_zoo.nn.positions import across, of_rows, place, sinusoids
from transformer_zoo.nn.stack import stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes. The defaults are PEGASUS's large size.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, a
            special token outside of the vocabulary.
    """

    vocab_size: int = 96103
    max_length: int = 1024  # of sources and of targets
    width: int = 1024
    num_layers: int = 16  # of the encoder
    num_decoder_layers: int = 16
    num_heads: int = 16
    num_decoder_heads: int = 16
    mlp_dim: int = 4096
    mlp_decoder_dim: int = 4096
    activation: str = "relu"
    scale_embedding: bool = True  # by the root of the width
    init_std: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    pad_id: int = 0
    eos_id: int | None = 1
    decoder_start_id: int = 0
    forced_eos_id: int | None = 1  # the last one, where a text has to end

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "width", "num_layers", "num_decoder_layers", "num_heads")
        check_sizes(self, "num_decoder_heads", "mlp_dim", "mlp_decoder_dim")
        check_heads(self.width, self.num_heads)
        check_heads(self.width, self.num_decoder_heads, "num_decoder_heads")
        check_activation(self.activation)
        check_rates(self, "dropout", "attention_dropout", "activation_dropout")
        for name in ("pad_id", "eos_id", "decoder_start_id", "forced_eos_id"):
            check_token(self, name)


PRESETS = {
    "pegasus-large": ("google/pegasus-large", Config()),
    "pegasus-xsum": ("google/pegasus-xsum", Config(max_length=512)),
    "pegasus-cnn_dailymail": ("google/pegasus-cnn_dailymail", Config()),
}


class Model(nn.Module):
    """PEGASUS, with or without its output layer: one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        self.token_embed = Embedding(cfg.vocab_size, cfg.width, compute, init)
        self.drop = nn.Dropout(cfg.dropout)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute, norm_first=True, init=init), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute, norm_first=True, init=init), norm()
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)

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
            source_documents_BS, target_documents_BT: number the documents packed in a row, alike on both sides;
                attention does not cross them.
            cache: of the targets before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ.
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
        positions_BS, mask = of_rows(source_BS, valid_BS, None, source_documents_BS)

        x_BSD = self.drop(self.embed(source_BS, positions_BS), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        x_BSD, _ = stack(self.encoder_blocks, x_BSD, None, mask, train, length=cfg.num_layers, compute=self.compute)
        return self.encoder_norm(x_BSD)

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
        positions_BT, mask, cache = place(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = across(target_BT, encoded_BSD, valid_BS, source_documents_BS, target_documents_BT, cache)

        x_BTD = self.drop(self.embed(target_BT, positions_BT), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        x_BTD, cache = decoder_stack(
            self.decoder_blocks, x_BTD, cache, mask, start, encoded_BSD, cross_mask, train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        hidden_BTD = self.decoder_norm(x_BTD)
        logits_BTV = self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "seq2seq-lm" else None
        return Output(hidden_BTD=hidden_BTD, logits=logits_BTV, cache=cache, encoded_BSD=encoded_BSD)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What stands for the tokens of either side, and for where they are: [B, T, D]."""
        cfg = self.config
        table_TD = jnp.asarray(sinusoids(cfg.max_length, cfg.width), self.compute.dtype)
        return self.token_embed(tokens_BT) * (cfg.width**0.5 if cfg.scale_embedding else 1.0) + table_TD[positions_BT]

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        return self.lm_head(self.token_embed.attend(hidden_BTD))


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution."""
    return nn.initializers.normal(cfg.init_std)


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for what the decoder reads.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")
    heads, head_dim = config.num_decoder_heads, config.width // config.num_decoder_heads
    return caches.empty(config.num_decoder_layers, batch, length, heads, head_dim, dtype)


def example_inputs(config: Config, task: str) -> tuple[Any, ...]:
    """Inputs of the right shapes for a task, to initialise and to trace."""
    return (jnp.zeros((1, 1), jnp.int32),) * 2


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "PegasusModel",
    "seq2seq-lm": "PegasusForConditionalGeneration",
}
HF_MODEL_TYPE = "pegasus"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "width": "d_model",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "num_decoder_heads": "decoder_attention_heads",
    "mlp_dim": "encoder_ffn_dim",
    "mlp_decoder_dim": "decoder_ffn_dim",
    "activation": "activation_function",
    "scale_embedding": "scale_embedding",
    "init_std": "init_std",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": "decoder_start_token_id",
    "forced_eos_id": "forced_eos_token_id",
}
HF_DEFAULTS = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "init_std": 0.02,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
}
HF_FIXED = {
    "is_decoder": False,
    "tie_word_embeddings": True,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    # What one class had for BART and for its kin, when these were first published:
    "normalize_before": True,
    "normalize_embedding": False,
    "add_final_layer_norm": True,
    "static_position_embeddings": True,
}
HF_PREFIX = "model."


def _side(side: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{side}.layer_norm.weight",                  f"{side}_norm/scale",            "D -> D"),
        (f"{side}.layer_norm.bias",                    f"{side}_norm/bias",             "D -> D"),
    )  # fmt: skip


HF_WEIGHTS = (
    # theirs                                           ours                             layout, theirs -> ours
    ("shared.weight",                                  "token_embed/embedding",         "V D -> V D"),
    *_side("encoder"),
    *_side("decoder"),
    *BLOCK_WEIGHTS,
)  # fmt: skip
HF_HEADS = {"seq2seq-lm": (("final_logits_bias", "lm_head/bias", "1 V -> V"),)}
HF_TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
HF_ZERO = ("final_logits_bias",)  # and so it is where a file has none
HF_IGNORE = ((r"(encoder|decoder)\.embed_positions\.weight", "sinusoids, which follow from the configuration"),)


def hf_constants(config: Config, task: str) -> dict[str, np.ndarray]:
    """What `HF_IGNORE` excuses, by name: the reference wants to find it."""
    table_TD = sinusoids(config.max_length, config.width)
    return {f"{side}.embed_positions.weight": table_TD for side in ("encoder", "decoder")}
