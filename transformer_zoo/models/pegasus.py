"""PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization, Zhang et al. 2019."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import numpy as np

from transformer_zoo.nn import Compute, TokenEmbedding
from transformer_zoo.nn.encoder_decoder import (
    BLOCK_WEIGHTS,
    CONFIG,
    DEFAULTS,
    HEAD_WEIGHTS,
    NORM_EPSILON,
    TIED,
    ZERO,
    DecoderBlock,
    EncoderBlock,
    LogitsBias,
    Transformer,
    check_config,
    fixed,
)
from transformer_zoo.nn.encoder_decoder import example_inputs as example_inputs
from transformer_zoo.nn.encoder_decoder import init_cache as init_cache
from transformer_zoo.nn.positions import sinusoids


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
        check_config(self)


PRESETS = {
    "pegasus-large": ("google/pegasus-large", Config()),
    "pegasus-xsum": ("google/pegasus-xsum", Config(max_length=512)),
    "pegasus-cnn_dailymail": ("google/pegasus-cnn_dailymail", Config()),
}


class Model(Transformer):
    """PEGASUS, with or without its output layer: one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.drop = nn.Dropout(cfg.dropout)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute, norm_first=True, init=init), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute, norm_first=True, init=init), norm()
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution."""
    return nn.initializers.normal(cfg.init_std)


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "PegasusModel",
    "seq2seq-lm": "PegasusForConditionalGeneration",
}
HF_MODEL_TYPE = "pegasus"
HF_CONFIG = CONFIG | {
    "init_std": "init_std",
}
HF_DEFAULTS = DEFAULTS | {
    "init_std": 0.02,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "forced_eos_token_id": 1,
}
HF_FIXED = fixed(norm_first=True, learned_positions=False)
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
HF_HEADS = {"seq2seq-lm": HEAD_WEIGHTS["seq2seq-lm"]}
HF_TIED = TIED
HF_ZERO = ZERO
HF_IGNORE = ((r"(encoder|decoder)\.embed_positions\.weight", "sinusoids, which follow from the configuration"),)


def hf_constants(config: Config, task: str) -> dict[str, np.ndarray]:
    """What `HF_IGNORE` excuses, by name: the reference wants to find it."""
    table_TD = sinusoids(config.max_length, config.width)
    return {f"{side}.embed_positions.weight": table_TD for side in ("encoder", "decoder")}
