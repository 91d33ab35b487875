"""PEGASUS: Pre-training with Extracted Gap-sentences for Abstractive Summarization, Zhang et al. 2019."""

import dataclasses
import functools

import flax.linen as nn
import jax

from transformer_zoo.nn.positions import sinusoids
from transformer_zoo.nn.transformer import NORM_EPSILON, DecoderBlock, EncoderBlock, Transformer, TransformerConfig
from transformer_zoo.nn.transformer import init_cache as init_cache
from transformer_zoo.published import bart_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """The architecture, by default of PEGASUS's large size. The other fields are those of `TransformerConfig`."""

    vocab_size: int = 96103
    pad_id: int = 0
    eos_id: int | None = 1
    decoder_start_id: int = 0
    forced_eos_id: int | None = 1
    num_layers: int = 16
    num_decoder_layers: int = 16
    activation: str = "relu"
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    init_std: float = 0.02


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
        self.add_embeddings(init)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute, norm_first=True, init=init), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute, norm_first=True, init=init), norm()

    def final(self, side: str, x_BTD: jax.Array, train: bool) -> jax.Array:
        return getattr(self, f"{side}_norm")(x_BTD)


PUBLISHED = bart_layout.published(
    model_type="pegasus",
    class_prefix="Pegasus",
    config=bart_layout.config(pad_id=0, eos_id=1, decoder_start_id=0) | {"init_std": bart_layout.INIT_STD},
    fixed=bart_layout.fixed(norm_first=True, learned_positions=False),
    ignored=bart_layout.IGNORED_SINUSOIDS,
    constants=lambda config, task: dict.fromkeys(bart_layout.SINUSOIDS, sinusoids(config.max_length, config.width)),
)
