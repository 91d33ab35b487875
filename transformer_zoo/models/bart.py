"""BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and Comprehension,
Lewis et al. 2019."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn

from transformer_zoo.nn.transformer import DecoderBlock, EncoderBlock, LearnedPositions, TransformerConfig
from transformer_zoo.nn.transformer import init_cache as init_cache
from transformer_zoo.published import Key, bart_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(TransformerConfig):
    """The architecture, by default of BART's base size. The other fields are those of `TransformerConfig`."""

    vocab_size: int = 50265
    width: int = 768
    scale_embedding: bool = False
    num_layers: int = 6
    num_decoder_layers: int = 6
    num_heads: int = 12
    num_decoder_heads: int = 12
    mlp_dim: int = 3072
    mlp_decoder_dim: int = 3072
    init_std: float = 0.02
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    head_dropout: float = 0.0
    decoder_start_id: int = 2
    forced_bos_id: int | None = None  # forced as the first generated token
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


_LARGE = {
    "width": 1024, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 16, "num_decoder_heads": 16,
    "mlp_dim": 4096, "mlp_decoder_dim": 4096,
}  # fmt: skip
_TUNED = {**_LARGE, "attention_dropout": 0.0, "activation_dropout": 0.0}
PRESETS = {
    "bart-base": ("facebook/bart-base", Config()),
    "bart-large": ("facebook/bart-large", Config(**_LARGE)),
    "bart-large-cnn": ("facebook/bart-large-cnn", Config(vocab_size=50264, forced_bos_id=0, **_TUNED)),
    "bart-large-xsum": ("facebook/bart-large-xsum", Config(vocab_size=50264, **_TUNED)),
    "bart-large-mnli": (
        "facebook/bart-large-mnli",
        Config(labels=("contradiction", "neutral", "entailment"), **_TUNED),
    ),
}


class Model(LearnedPositions):
    """BART with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        self.add_embeddings(init)
        self.encoder_blocks = EncoderBlock(cfg, compute, norm_first=False, init=init)
        self.decoder_blocks = DecoderBlock(cfg, compute, norm_first=False, init=init)
        self.add_classifier(init)


def _forced_bos(value: int | None, settings: Mapping[str, Any]) -> int | None:
    """The first files hold only whether the token that begins a text is forced."""
    forced = value is None and settings.get("force_bos_token_to_be_generated")
    return settings.get("bos_token_id", 0) if forced else value


PUBLISHED = bart_layout.published(
    model_type="bart",
    class_prefix="Bart",
    config={
        **bart_layout.config(pad_id=1, eos_id=2, decoder_start_id=2),
        "init_std": bart_layout.INIT_STD,
        "forced_bos_id": Key("forced_bos_token_id", None, _forced_bos),
        **bart_layout.CLASSIFIER,
    },
    fixed=bart_layout.fixed(norm_first=False, learned_positions=True),
    num_labels=3,
    heads=bart_layout.LANGUAGE_MODEL | bart_layout.CLASSIFIERS,
    ignored=bart_layout.VERSION,
)
