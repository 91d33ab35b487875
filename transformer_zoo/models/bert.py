"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, Devlin et al. 2018."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import Compute, Embedding, Output, PostNormBlock, Table, heads, stack
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import check_heads, check_ids, check_labels, check_rates, check_sizes, check_tokens
from transformer_zoo.nn.positions import of_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, no or
            equal labels.
    """

    vocab_size: int = 30522
    max_length: int = 512
    num_segments: int = 2
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-12
    init_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float | None = None  # None: as hidden_dropout
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "num_segments", "width", "num_layers", "num_heads", "mlp_dim")
        check_heads(self.width, self.num_heads)
        check_rates(self, "hidden_dropout", "attention_dropout", "head_dropout")
        check_activation(self.activation)
        check_labels(self.labels)


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    "bert-base-uncased": ("google-bert/bert-base-uncased", Config()),
    "bert-large-uncased": ("google-bert/bert-large-uncased", Config(**_LARGE)),
    "bert-base-cased": ("google-bert/bert-base-cased", Config(vocab_size=28996)),
    "bert-large-cased": ("google-bert/bert-large-cased", Config(vocab_size=28996, **_LARGE)),
    "bert-base-multilingual-cased": ("google-bert/bert-base-multilingual-cased", Config(vocab_size=119547)),
    "bert-base-multilingual-uncased": ("google-bert/bert-base-multilingual-uncased", Config(vocab_size=105879)),
}


class Model(nn.Module):
    """BERT with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "masked-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        table = functools.partial(Table, width=cfg.width, compute=compute, init=init)
        self.token_embed = Embedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed, self.segment_embed = table(cfg.max_length), table(cfg.num_segments)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.blocks = PostNormBlock(cfg, compute, init)
        if self.task in POOLED:
            self.pooler = heads.Pooler("tanh", compute, init)
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(self.token_embed, cfg.activation, norm, compute, init)
        if classes := heads.classes(self.task, cfg.labels):
            dropout = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
            self.head = heads.Classifier(classes, compute, init, 0.0 if self.task in UNDROPPED else dropout)

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
        positions_BT, mask = of_rows(tokens_BT, valid_BT, positions_BT)
        check_ids(positions_BT, cfg.max_length, "positions_BT", "the positions")

        x_BTD = self.token_embed(tokens_BT) + self.segment_embed(segments_BT) + self.position_embed(positions_BT)
        x_BTD = self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        hidden_BTD, _ = stack(self.blocks, x_BTD, None, mask, None, train, length=cfg.num_layers, compute=self.compute)
        pooled_BD = self.pooler(hidden_BTD) if self.task in POOLED else None
        return heads.output(self, tokens, hidden_BTD, summary_BD=pooled_BD, pooled_BD=pooled_BD, train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)


POOLED = ("base", "pretraining", "next-sentence", "sequence-classification", "multiple-choice")
UNDROPPED = ("pretraining", "next-sentence", "question-answering")  # heads that see all there is


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution cut at two standard deviations, as in the code released with the paper."""
    return nn.initializers.truncated_normal(cfg.init_std)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "BertModel",
    "masked-lm": "BertForMaskedLM",
    "next-sentence": "BertForNextSentencePrediction",
    "pretraining": "BertForPreTraining",
    "sequence-classification": "BertForSequenceClassification",
    "token-classification": "BertForTokenClassification",
    "question-answering": "BertForQuestionAnswering",
    "multiple-choice": "BertForMultipleChoice",
}
HF_MODEL_TYPE = "bert"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
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
    "problem_type": None,
}
HF_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
HF_PREFIX = "bert."
HF_WEIGHTS = (
    # theirs                                               ours                                 layout, theirs -> ours
    ("embeddings.word_embeddings.weight",                   "token_embed/embedding",         "V D -> V D"),
    ("embeddings.position_embeddings.weight",               "position_embed/embedding",      "T D -> T D"),
    ("embeddings.token_type_embeddings.weight",             "segment_embed/embedding",       "S D -> S D"),
    ("embeddings.LayerNorm.weight",                         "embed_norm/scale",              "D -> D"),
    ("embeddings.LayerNorm.bias",                           "embed_norm/bias",               "D -> D"),
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
    ("pooler.dense.weight",                                 "pooler/dense/kernel",           "E D -> D E"),
    ("pooler.dense.bias",                                   "pooler/dense/bias",             "E -> E"),
)  # fmt: skip
_LANGUAGE_MODEL = (
    ("cls.predictions.transform.dense.weight",              "lm_head/dense/kernel",          "E D -> D E"),
    ("cls.predictions.transform.dense.bias",                "lm_head/dense/bias",            "E -> E"),
    ("cls.predictions.transform.LayerNorm.weight",          "lm_head/norm/scale",            "E -> E"),
    ("cls.predictions.transform.LayerNorm.bias",            "lm_head/norm/bias",             "E -> E"),
    ("cls.predictions.bias",                                "lm_head/bias",                  "V -> V"),
)  # fmt: skip
_NEXT_SENTENCE = (
    ("cls.seq_relationship.weight",                         "head/scores/kernel",            "C D -> D C"),
    ("cls.seq_relationship.bias",                           "head/scores/bias",              "C -> C"),
)  # fmt: skip
_CLASSIFIER = (
    ("classifier.weight",                                   "head/scores/kernel",            "C D -> D C"),
    ("classifier.bias",                                     "head/scores/bias",              "C -> C"),
)  # fmt: skip
_ANSWER = (
    ("qa_outputs.weight",                                   "head/scores/kernel",            "C D -> D C"),
    ("qa_outputs.bias",                                     "head/scores/bias",              "C -> C"),
)  # fmt: skip
HF_HEADS = {
    "masked-lm": _LANGUAGE_MODEL,
    "next-sentence": _NEXT_SENTENCE,
    "pretraining": _LANGUAGE_MODEL + _NEXT_SENTENCE,
    "sequence-classification": _CLASSIFIER,
    "token-classification": _CLASSIFIER,
    "question-answering": _ANSWER,
    "multiple-choice": _CLASSIFIER,
}
HF_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "/cls.predictions.bias",
}
HF_IGNORE = ((r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),)
