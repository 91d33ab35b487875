"""The Transformer: Attention Is All You Need, Vaswani et al. 2017; and what came of it in translation: Marian: Fast
Neural Machine Translation in C++, Junczys-Dowmunt et al. 2018, with which the models of OPUS-MT (Tiedemann and
Thottingal 2020) were trained.

The presets `transformer-base` and `transformer-big` are those of the paper (table 3) for English and German. From the
paper the family differs where that changes nothing that is learned: sines stand before cosines and do not take turns
with them, as in the code released with it; projections of attention have biases; and so has the output layer, but they
are not trained, and zero.
"""

import dataclasses

import flax.linen as nn
import numpy as np

from transformer_zoo.nn import Compute, TokenEmbedding
from transformer_zoo.nn.encoder_decoder import (
    BLOCK_WEIGHTS,
    CONFIG,
    DEFAULTS,
    HEAD_WEIGHTS,
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
    """The architecture: what a checkpoint fixes. The defaults are the base size of OPUS-MT.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, a
            special token outside of the vocabulary.
    """

    vocab_size: int = 58101
    max_length: int = 512  # of sources and of targets
    width: int = 512
    num_layers: int = 6  # of the encoder
    num_decoder_layers: int = 6
    num_heads: int = 8
    num_decoder_heads: int = 8
    mlp_dim: int = 2048
    mlp_decoder_dim: int = 2048
    activation: str = "swish"
    scale_embedding: bool = True  # by the root of the width
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    pad_id: int = 58100
    eos_id: int | None = 0
    decoder_start_id: int = 58100
    forced_eos_id: int | None = 0  # the last one, where a text has to end

    def __post_init__(self) -> None:
        check_config(self)


_PAPER = {"vocab_size": 37000, "max_length": 1024, "activation": "relu"}
_PAPER |= {"pad_id": 0, "eos_id": 1, "decoder_start_id": 0, "forced_eos_id": None}
_BIG = {"width": 1024, "mlp_dim": 4096, "mlp_decoder_dim": 4096, "num_heads": 16, "num_decoder_heads": 16}
_OPUS = {
    "en-de": 58101, "de-en": 58101, "en-fr": 59514, "fr-en": 59514, "en-es": 65001, "es-en": 65001, "en-ru": 62518,
    "ru-en": 62518, "en-zh": 65001, "zh-en": 65001,
}  # fmt: skip
PRESETS = {
    "transformer-base": ("", Config(**_PAPER)),
    "transformer-big": ("", Config(dropout=0.3, **_PAPER, **_BIG)),
    **{
        f"opus-mt-{pair}": (
            f"Helsinki-NLP/opus-mt-{pair}",
            Config(vocab_size=size, pad_id=size - 1, decoder_start_id=size - 1),
        )
        for pair, size in _OPUS.items()
    },
}


class Model(Transformer):
    """The Transformer, with or without its output layer: one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.xavier_uniform()
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, nn.initializers.normal(cfg.width**-0.5))
        self.drop = nn.Dropout(cfg.dropout)
        self.encoder_blocks = EncoderBlock(cfg, compute, norm_first=False, init=init)
        self.decoder_blocks = DecoderBlock(cfg, compute, norm_first=False, init=init)
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "MarianModel",
    "seq2seq-lm": "MarianMTModel",
}
HF_MODEL_TYPE = "marian"
HF_CONFIG = CONFIG
HF_DEFAULTS = DEFAULTS | {
    "pad_token_id": 58100,
    "eos_token_id": 0,
    "decoder_start_token_id": 58100,
    "forced_eos_token_id": 0,
}
HF_FIXED = fixed(norm_first=False, learned_positions=False) | {"share_encoder_decoder_embeddings": True}
HF_PREFIX = "model."
HF_WEIGHTS = (
    # theirs                                           ours                             layout, theirs -> ours
    ("shared.weight",                                  "token_embed/embedding",         "V D -> V D"),
    *BLOCK_WEIGHTS,
)  # fmt: skip
HF_HEADS = {"seq2seq-lm": HEAD_WEIGHTS["seq2seq-lm"]}
HF_TIED = TIED
HF_ZERO = ZERO
HF_IGNORE = ((r"(encoder|decoder)\.embed_positions\.weight", "sinusoids, which follow from the configuration"),)


def hf_constants(config: Config, task: str) -> dict[str, np.ndarray]:
    """What `HF_IGNORE` excuses, by name: the reference wants to find it, but not beside the output layer."""
    if task == "seq2seq-lm":
        return {}
    table_TD = sinusoids(config.max_length, config.width)
    return {f"{side}.embed_positions.weight": table_TD for side in ("encoder", "decoder")}
