"""ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, Clark et al. 2020."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import Compute, Embedding, Output, PostNormBlock, TokenEmbedding, heads, stack
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import check_heads, check_ids, check_labels, check_rates, check_sizes, check_tokens
from transformer_zoo.nn.positions import encoder_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes, of a generator as of a discriminator.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, no or
            equal labels.
    """

    vocab_size: int = 30522
    max_length: int = 512
    num_segments: int = 2
    embed_width: int = 128
    width: int = 256
    num_layers: int = 12
    num_heads: int = 4
    mlp_dim: int = 1024
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    init_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float | None = None  # None: as hidden_dropout
    choice_dropout: float = 0.1  # of the head of multiple-choice
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "num_segments", "embed_width", "width")
        check_sizes(self, "num_layers", "num_heads", "mlp_dim")
        check_heads(self.width, self.num_heads)
        check_rates(self, "hidden_dropout", "attention_dropout", "head_dropout", "choice_dropout")
        check_activation(self.activation)
        check_labels(self.labels)


_BASE = {"embed_width": 768, "width": 768, "num_heads": 12, "mlp_dim": 3072}
_LARGE = {"embed_width": 1024, "width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    "electra-small-discriminator": ("google/electra-small-discriminator", Config()),
    "electra-small-generator": ("google/electra-small-generator", Config()),
    "electra-base-discriminator": ("google/electra-base-discriminator", Config(**_BASE)),
    "electra-base-generator": ("google/electra-base-generator", Config(embed_width=768)),
    "electra-large-discriminator": ("google/electra-large-discriminator", Config(**_LARGE)),
    "electra-large-generator": ("google/electra-large-generator", Config(embed_width=1024, num_layers=24)),
}


class Model(nn.Module):
    """ELECTRA with the head of a task, one of `TASKS`: "masked-lm" is the generator, "replaced-token-detection" the
    discriminator.

    Where the two are trained together they share token_embed, position_embed, segment_embed and embed_norm (section 3.2
    and the code released with the paper), for which both have the same embed_width; each projects to its own width.
    """

    config: Config
    task: str = "masked-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        table = functools.partial(Embedding, width=cfg.embed_width, compute=compute, init=init)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.embed_width, compute, init)
        self.position_embed, self.segment_embed = table(cfg.max_length), table(cfg.num_segments)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        if cfg.embed_width != cfg.width:
            self.embed_project = compute.dense(cfg.width, kernel_init=init)
        self.blocks = PostNormBlock(cfg, compute, init)
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(self.token_embed, "gelu", norm, compute, init)
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, init, **judge(cfg, self.task))

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Reads whole rows.

        Args:
            tokens_BT: ids, int[B, T]; for multiple-choice [B, C, T], a row for each choice, as are the others then.
            segments_BT: the number of the text that a token belongs to, from 0. None: all 0.
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: by default counted over the real tokens of the row.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ.
        """
        cfg, tokens = self.config, tokens_BT
        tokens_BT, segments_BT, valid_BT, positions_BT = heads.as_rows(
            self.task, tokens_BT, segments_BT=segments_BT, valid_BT=valid_BT, positions_BT=positions_BT
        )
        check_tokens(tokens_BT, cfg.vocab_size, cfg.max_length)
        segments_BT = jnp.zeros_like(tokens_BT) if segments_BT is None else segments_BT
        check_ids(segments_BT, cfg.num_segments, "segments_BT", "the segments")
        positions_BT, mask = encoder_inputs(tokens_BT, valid_BT, positions_BT)
        check_ids(positions_BT, cfg.max_length, "positions_BT", "the positions")

        x_BTE = self.token_embed(tokens_BT) + self.segment_embed(segments_BT) + self.position_embed(positions_BT)
        x_BTE = self.embed_drop(self.embed_norm(x_BTE), deterministic=not train)
        x_BTD = x_BTE if cfg.embed_width == cfg.width else self.embed_project(x_BTE)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        hidden_BTD, _ = stack(self.blocks, x_BTD, None, mask, None, train, length=cfg.num_layers, compute=self.compute)
        return heads.output(self, tokens, hidden_BTD, summary_BD=hidden_BTD[:, 0], train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)


def judge(cfg: Config, task: str) -> dict[str, Any]:
    """How the head of a task judges: of sequences by the first token, with a hidden layer where BERT has its pooler."""
    dropout = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
    return {
        "replaced-token-detection": {"activation": cfg.activation},
        "sequence-classification": {"activation": "gelu", "dropout": dropout, "hidden_dropout": dropout},
        "token-classification": {"dropout": dropout},
        "multiple-choice": {"activation": "gelu", "dropout": cfg.choice_dropout},
    }.get(task, {})


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution cut at two standard deviations, as in the code released with the paper."""
    return nn.initializers.truncated_normal(cfg.init_std)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "ElectraModel",
    "masked-lm": "ElectraForMaskedLM",
    "replaced-token-detection": "ElectraForPreTraining",
    "sequence-classification": "ElectraForSequenceClassification",
    "token-classification": "ElectraForTokenClassification",
    "question-answering": "ElectraForQuestionAnswering",
    "multiple-choice": "ElectraForMultipleChoice",
}
HF_MODEL_TYPE = "electra"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "embed_width": "embedding_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "init_std": "initializer_range",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout",
    "choice_dropout": "summary_last_dropout",
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "classifier_dropout": None,
    "summary_last_dropout": 0.1,
    "problem_type": None,
}
HF_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": "gelu",
}
HF_PREFIX = "electra."
HF_WEIGHTS = (
    # theirs                                               ours                                 layout, theirs -> ours
    ("embeddings.word_embeddings.weight",                   "token_embed/embedding",         "V E -> V E"),
    ("embeddings.position_embeddings.weight",               "position_embed/embedding",      "T E -> T E"),
    ("embeddings.token_type_embeddings.weight",             "segment_embed/embedding",       "S E -> S E"),
    ("embeddings.LayerNorm.weight",                         "embed_norm/scale",              "E -> E"),
    ("embeddings.LayerNorm.bias",                           "embed_norm/bias",               "E -> E"),
    ("embeddings_project.weight",                           "embed_project/kernel",          "D E -> E D"),
    ("embeddings_project.bias",                             "embed_project/bias",            "D -> D"),
    ("encoder.layer.*.attention.self.query.weight",         "blocks/attention/query/kernel", "(H K) D -> D H K"),
    ("encoder.layer.*.attention.self.query.bias",           "blocks/attention/query/bias",   "(H K) -> H K"),
    ("encoder.layer.*.attention.self.key.weight",           "blocks/attention/key/kernel",   "(H K) D -> D H K"),
    ("encoder.layer.*.attention.self.key.bias",             "blocks/attention/key/bias",     "(H K) -> H K"),
    ("encoder.layer.*.attention.self.value.weight",         "blocks/attention/value/kernel", "(H K) D -> D H K"),
    ("encoder.layer.*.attention.self.value.bias",           "blocks/attention/value/bias",   "(H K) -> H K"),
    ("encoder.layer.*.attention.output.dense.weight",       "blocks/attention/out/kernel",   "D (H K) -> H K D"),
    ("encoder.layer.*.attention.output.dense.bias",         "blocks/attention/out/bias",     "D -> D"),
    ("encoder.layer.*.attention.output.LayerNorm.weight",   "blocks/attention_norm/scale",   "D -> D"),
    ("encoder.layer.*.attention.output.LayerNorm.bias",     "blocks/attention_norm/bias",    "D -> D"),
    ("encoder.layer.*.intermediate.dense.weight",           "blocks/mlp_up/kernel",          "F D -> D F"),
    ("encoder.layer.*.intermediate.dense.bias",             "blocks/mlp_up/bias",            "F -> F"),
    ("encoder.layer.*.output.dense.weight",                 "blocks/mlp_down/kernel",        "D F -> F D"),
    ("encoder.layer.*.output.dense.bias",                   "blocks/mlp_down/bias",          "D -> D"),
    ("encoder.layer.*.output.LayerNorm.weight",             "blocks/mlp_norm/scale",         "D -> D"),
    ("encoder.layer.*.output.LayerNorm.bias",               "blocks/mlp_norm/bias",          "D -> D"),
)  # fmt: skip
_SCORES = (
    ("classifier.weight",                                   "head/scores/kernel",            "C D -> D C"),
    ("classifier.bias",                                     "head/scores/bias",              "C -> C"),
)  # fmt: skip
HF_HEADS = {
    "masked-lm": (
        ("generator_predictions.dense.weight",              "lm_head/dense/kernel",          "E D -> D E"),
        ("generator_predictions.dense.bias",                "lm_head/dense/bias",            "E -> E"),
        ("generator_predictions.LayerNorm.weight",          "lm_head/norm/scale",            "E -> E"),
        ("generator_predictions.LayerNorm.bias",            "lm_head/norm/bias",             "E -> E"),
        ("generator_lm_head.bias",                          "lm_head/bias",                  "V -> V"),
    ),
    "replaced-token-detection": (
        ("discriminator_predictions.dense.weight",          "head/dense/kernel",             "E D -> D E"),
        ("discriminator_predictions.dense.bias",            "head/dense/bias",               "E -> E"),
        ("discriminator_predictions.dense_prediction.weight", "head/scores/kernel",          "C D -> D C"),
        ("discriminator_predictions.dense_prediction.bias", "head/scores/bias",              "C -> C"),
    ),
    "sequence-classification": (
        ("classifier.dense.weight",                         "head/dense/kernel",             "E D -> D E"),
        ("classifier.dense.bias",                           "head/dense/bias",               "E -> E"),
        ("classifier.out_proj.weight",                      "head/scores/kernel",            "C D -> D C"),
        ("classifier.out_proj.bias",                        "head/scores/bias",              "C -> C"),
    ),
    "token-classification": _SCORES,
    "question-answering": (
        ("qa_outputs.weight",                               "head/scores/kernel",            "C D -> D C"),
        ("qa_outputs.bias",                                 "head/scores/bias",              "C -> C"),
    ),
    "multiple-choice": (
        ("sequence_summary.summary.weight",                 "head/dense/kernel",             "E D -> D E"),
        ("sequence_summary.summary.bias",                   "head/dense/bias",               "E -> E"),
        *_SCORES,
    ),
}  # fmt: skip
HF_TIED = {"generator_lm_head.weight": "embeddings.word_embeddings.weight"}
HF_IGNORE = (
    (r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),
    (r"embeddings\.token_type_ids", "zeros, likewise"),
)
