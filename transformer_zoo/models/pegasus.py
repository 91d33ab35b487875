"""PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization, Zhang et al. 2019."""

import dataclasses
import functools

import flax.linen as nn
import jax

from transformer_zoo.nn import Architecture, TokenEmbedding
from transformer_zoo.nn.positions import sinusoids
from transformer_zoo.nn.transformer import NORM_EPSILON, DecoderBlock, EncoderBlock, LogitsBias, Transformer
from transformer_zoo.nn.transformer import init_cache as init_cache
from transformer_zoo.published import Published, bart_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes. The defaults are PEGASUS's large size."""

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
    scale_embedding: bool = True  # by sqrt(width)
    init_std: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    pad_id: int = 0
    eos_id: int | None = 1
    decoder_start_id: int = 0
    forced_eos_id: int | None = 1  # forced at the maximum length


PRESETS = {
    "pegasus-large": ("google/pegasus-large", Config()),
    "pegasus-xsum": ("google/pegasus-xsum", Config(max_length=512)),
    "pegasus-cnn_dailymail": ("google/pegasus-cnn_dailymail", Config()),
}


class Model(Transformer):
    """PEGASUS, with a language model's output layer for the task `seq2seq-lm` and without for `base`."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        self.token_embed, self.drop = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init), nn.Dropout(cfg.dropout)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute, norm_first=True, init=init), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute, norm_first=True, init=init), norm()
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)

    def final(self, side: str, x_BTD: jax.Array, train: bool) -> jax.Array:
        return getattr(self, f"{side}_norm")(x_BTD)


PUBLISHED = Published(
    model_type="pegasus",
    class_prefix="Pegasus",
    config=bart_layout.config(pad_id=0, eos_id=1, decoder_start_id=0) | {"init_std": bart_layout.INIT_STD},
    fixed=bart_layout.fixed(norm_first=True, learned_positions=False),
    prefix="model.",
    body=bart_layout.BODY,
    heads=bart_layout.LANGUAGE_MODEL,
    tied=bart_layout.TIED,
    ignored=bart_layout.IGNORED_SINUSOIDS,
    zero_if_missing=(bart_layout.LOGITS_BIAS,),
    constants=lambda config, task: dict.fromkeys(bart_layout.SINUSOIDS, sinusoids(config.max_length, config.width)),
)
