"""mBART: Multilingual Denoising Pre-training for Neural Machine Translation, Liu et al. 2020; and mBART-50:
Multilingual Translation with Extensible Multilingual Pretraining and Finetuning, Tang et al. 2020."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import pooling
from transformer_zoo.nn.transformer import NORM_EPSILON, DecoderBlock, EncoderBlock, LearnedPositions, TransformerConfig
from transformer_zoo.nn.transformer import init_cache as init_cache
from transformer_zoo.published import Key, bart_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """The architecture, by default of mBART's large size. The other fields are those of `TransformerConfig`."""

    init_std: float = 0.02
    head_dropout: float = 0.0
    decoder_start_id: int | None = None  # None: the target's language; mBART-50: the end of a text
    forced_bos_id: int | None = None  # forced as the first generated token; mBART-50: a language
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


_50 = {"vocab_size": 250054, "decoder_start_id": 2}
_TRANSLATES = {**_50, "activation": "relu"}  # from any of 50 languages
PRESETS = {
    "mbart-large-cc25": ("facebook/mbart-large-cc25", Config()),
    "mbart-large-en-ro": ("facebook/mbart-large-en-ro", Config(decoder_start_id=250020, attention_dropout=0.1)),
    "mbart-large-50": ("facebook/mbart-large-50", Config(**_50)),
    "mbart-large-50-many-to-many-mmt": ("facebook/mbart-large-50-many-to-many-mmt", Config(**_TRANSLATES)),
    "mbart-large-50-one-to-many-mmt": ("facebook/mbart-large-50-one-to-many-mmt", Config(**_TRANSLATES)),
    "mbart-large-50-many-to-one-mmt": (
        "facebook/mbart-large-50-many-to-one-mmt",
        Config(forced_bos_id=250004, **_TRANSLATES),
    ),
}


class Model(LearnedPositions):
    """mBART with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        self.add_embeddings(init)
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute, norm_first=True, init=init), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute, norm_first=True, init=init), norm()
        self.add_classifier(init)

    def final(self, side: str, x_BTD: jax.Array, train: bool) -> jax.Array:
        return getattr(self, f"{side}_norm")(x_BTD)

    def decoder_start(self, source_BS: jax.Array, valid_BS: jax.Array | None) -> jax.Array:
        """The last token of each row, [B, 1]: the language of the text."""
        real_BS = jnp.ones(source_BS.shape, bool) if valid_BS is None else valid_BS
        return pooling.last(source_BS[..., None], real_BS)


PUBLISHED = bart_layout.published(
    model_type="mbart",
    class_prefix="MBart",
    config={
        **bart_layout.config(pad_id=1, eos_id=2, decoder_start_id=None),
        "init_std": bart_layout.INIT_STD,
        "forced_bos_id": Key("forced_bos_token_id", None),
        **bart_layout.CLASSIFIER,
    },
    fixed=bart_layout.fixed(norm_first=True, learned_positions=True),
    heads=bart_layout.LANGUAGE_MODEL | bart_layout.CLASSIFIERS,
    ignored=bart_layout.VERSION,
)
