"""BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and Comprehension,
Lewis et al. 2019."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn import Compute, Embedding, TokenEmbedding, heads
from transformer_zoo.nn.checks import check_labels, check_rates, check_token
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
    judge,
)
from transformer_zoo.nn.encoder_decoder import example_inputs as example_inputs
from transformer_zoo.nn.encoder_decoder import init_cache as init_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes. The defaults are BART's base size.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, a
            special token outside of the vocabulary, no or equal labels.
    """

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
    scale_embedding: bool = False  # by the root of the width
    init_std: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    head_dropout: float = 0.0
    pad_id: int = 1
    eos_id: int | None = 2
    decoder_start_id: int = 2
    forced_bos_id: int | None = None  # the first token of whatever is generated
    forced_eos_id: int | None = 2  # the last one, where a text has to end
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_config(self)
        check_rates(self, "head_dropout")
        check_token(self, "forced_bos_id")
        check_labels(self.labels)


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
    """BART with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        table = functools.partial(Embedding, OFFSET + cfg.max_length, cfg.width, compute, init)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.drop = nn.Dropout(cfg.dropout)
        self.encoder_position_embed, self.encoder_embed_norm = table(), norm()
        self.encoder_blocks = EncoderBlock(cfg, compute, norm_first=False, init=init)
        self.decoder_position_embed, self.decoder_embed_norm = table(), norm()
        self.decoder_blocks = DecoderBlock(cfg, compute, norm_first=False, init=init)
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, init, **judge(cfg, self.task))

    def embed(self, side: str, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        table, norm = getattr(self, f"{side}_position_embed"), getattr(self, f"{side}_embed_norm")
        return norm(self.scaled(tokens_BT) + table(OFFSET + positions_BT))


OFFSET = 2  # the rows of a table of positions that stand before the first position, and that nothing reads


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution."""
    return nn.initializers.normal(cfg.init_std)


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "BartModel",
    "seq2seq-lm": "BartForConditionalGeneration",
    "sequence-classification": "BartForSequenceClassification",
    "question-answering": "BartForQuestionAnswering",
}
HF_MODEL_TYPE = "bart"


def _forced_bos(value: int | None, theirs: Mapping[str, Any]) -> int | None:
    """The first files say but that the token which begins a text is forced."""
    return theirs.get("bos_token_id", 0) if value is None and theirs.get("force_bos_token_to_be_generated") else value


HF_CONFIG = CONFIG | {
    "init_std": "init_std",
    "head_dropout": "classifier_dropout",
    "forced_bos_id": ("forced_bos_token_id", _forced_bos, lambda token, cfg: token),
    "problem": "problem_type",
}
HF_DEFAULTS = DEFAULTS | {
    "init_std": 0.02,
    "classifier_dropout": 0.0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": None,
    "forced_eos_token_id": 2,
    "num_labels": 3,
    "problem_type": None,
}
HF_FIXED = fixed(norm_first=False, learned_positions=True)
HF_PREFIX = "model."


def _side(side: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{side}.embed_positions.weight",             f"{side}_position_embed/embedding", "T D -> T D"),
        (f"{side}.layernorm_embedding.weight",         f"{side}_embed_norm/scale",      "D -> D"),
        (f"{side}.layernorm_embedding.bias",           f"{side}_embed_norm/bias",       "D -> D"),
    )  # fmt: skip


HF_WEIGHTS = (
    # theirs                                           ours                             layout, theirs -> ours
    ("shared.weight",                                  "token_embed/embedding",         "V D -> V D"),
    *_side("encoder"),
    *_side("decoder"),
    *BLOCK_WEIGHTS,
)  # fmt: skip
HF_HEADS = HEAD_WEIGHTS
HF_TIED = TIED
HF_ZERO = ZERO
HF_IGNORE = ((r"(encoder|decoder)\.version", "the number of a format of fairseq, in which the first files were made"),)
