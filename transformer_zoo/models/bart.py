"""BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and Comprehension,
Lewis et al. 2019."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn import Architecture, Embedding, TokenEmbedding
from transformer_zoo.nn.transformer import NORM_EPSILON, DecoderBlock, EncoderBlock, LogitsBias, Transformer
from transformer_zoo.nn.transformer import init_cache as init_cache
from transformer_zoo.published import Key, Published, bart_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes. The defaults are BART's base size."""

    vocab_size: int = 50265
    max_length: int = 1024  # of sources and of targets
    width: int = 768
    num_layers: int = 6  # of the encoder
    num_decoder_layers: int = 6
    num_heads: int = 12
    num_decoder_heads: int = 12
    mlp_dim: int = 3072
    mlp_decoder_dim: int = 3072
    activation: str = "gelu"
    scale_embedding: bool = False  # by sqrt(width)
    init_std: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    head_dropout: float = 0.0
    pad_id: int = 1
    eos_id: int | None = 2
    decoder_start_id: int = 2
    forced_bos_id: int | None = None  # forced as the first generated token
    forced_eos_id: int | None = 2  # forced at the maximum length
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


class Model(Transformer):
    """BART with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        positions = functools.partial(Embedding, OFFSET + cfg.max_length, cfg.width, compute, init)
        self.token_embed, self.drop = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init), nn.Dropout(cfg.dropout)
        self.encoder_position_embed, self.encoder_embed_norm = positions(), norm()
        self.encoder_blocks = EncoderBlock(cfg, compute, norm_first=False, init=init)
        self.decoder_position_embed, self.decoder_embed_norm = positions(), norm()
        self.decoder_blocks = DecoderBlock(cfg, compute, norm_first=False, init=init)
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)
        self.add_classifier(init)

    def embed(self, side: str, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        table, norm = getattr(self, f"{side}_position_embed"), getattr(self, f"{side}_embed_norm")
        return norm(self.embed_tokens(tokens_BT) + table(OFFSET + positions_BT))


OFFSET = 2  # rows of the table of positions before that of position 0, which are never read


def _forced_bos(value: int | None, settings: Mapping[str, Any]) -> int | None:
    """The first files hold only whether the token that begins a text is forced."""
    forced = value is None and settings.get("force_bos_token_to_be_generated")
    return settings.get("bos_token_id", 0) if forced else value


PUBLISHED = Published(
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
    prefix="model.",
    body=bart_layout.BODY,
    heads=bart_layout.LANGUAGE_MODEL | bart_layout.CLASSIFIERS,
    tied=bart_layout.TIED,
    ignored=bart_layout.VERSION,
    zero_if_missing=(bart_layout.LOGITS_BIAS,),
)
