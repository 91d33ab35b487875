"""ALBERT: A Lite BERT for Self-supervised Learning of Language Representations, Lan et al. 2019."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Attention, Compute, Embedding, Mask, Output, TokenEmbedding, heads, stack
from transformer_zoo.nn.activations import ACTIVATIONS, check_activation
from transformer_zoo.nn.checks import check_heads, check_ids, check_labels, check_rates, check_sizes, check_tokens
from transformer_zoo.nn.positions import encoder_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, more groups than layers, an unknown activation,
            no rate of dropout, no or equal labels.
    """

    vocab_size: int = 30000
    max_length: int = 512
    num_segments: int = 2
    embed_width: int = 128
    width: int = 768
    num_layers: int = 12
    num_groups: int = 1  # layers that follow one another and share their parameters are a group
    layer_blocks: int = 1  # blocks in a layer, each with its own parameters
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-12
    init_std: float = 0.02
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    head_dropout: float = 0.1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "num_segments", "embed_width", "width", "mlp_dim")
        check_sizes(self, "num_layers", "num_groups", "layer_blocks", "num_heads")
        check_heads(self.width, self.num_heads)
        if self.num_groups > self.num_layers:
            raise ValueError(f"num_groups={self.num_groups} is more than num_layers={self.num_layers}")
        check_rates(self, "hidden_dropout", "attention_dropout", "head_dropout")
        check_activation(self.activation)
        check_labels(self.labels)


_SIZES = {
    "base": {},
    "large": {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096},
    "xlarge": {"width": 2048, "num_layers": 24, "num_heads": 16, "mlp_dim": 8192},
    "xxlarge": {"width": 4096, "num_heads": 64, "mlp_dim": 16384},
}
# The first version had dropout, except in the largest model, and another gelu.
_FIRST = {"activation": "gelu", "hidden_dropout": 0.1, "attention_dropout": 0.1}
_FIRST_XXLARGE = {"activation": "gelu"}
PRESETS = {
    f"albert-{size}-v{version}": (f"albert/albert-{size}-v{version}", Config(**sizes, **more))
    for size, sizes in _SIZES.items()
    for version, more in ((1, _FIRST_XXLARGE if size == "xxlarge" else _FIRST), (2, {}))
}


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in BERT; without dropout after the second."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        dense = functools.partial(compute.dense, kernel_init=init)
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention",
        )  # fmt: skip

        y_BTD = attention(x_BTD, attention.keys_values(x_BTD), mask=mask, train=train)
        x_BTD = norm(name="attention_norm")(x_BTD + drop(y_BTD))
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        return norm(name="mlp_norm")(x_BTD + dense(cfg.width, name="mlp_down")(h_BTF)), None


class Model(nn.Module):
    """ALBERT with the head of a task, one of `TASKS`."""

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
        self.embed_project = compute.dense(cfg.width, kernel_init=init)
        self.blocks = Block(cfg, compute)
        if self.task in POOLED:
            self.pooler = heads.Pooler("tanh", compute, init)
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(self.token_embed, cfg.activation, norm, compute, init)
        if classes := heads.classes(self.task, cfg.labels):
            dropout = 0.0 if self.task == "question-answering" else cfg.head_dropout
            self.head = heads.Classifier(classes, compute, init, dropout)

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
        x_BTD = self.embed_project(self.embed_drop(self.embed_norm(x_BTE), deterministic=not train))
        self.sow("intermediates", "embedded_BTD", x_BTD)
        where = places(cfg)
        hidden_BTD, _ = stack(
            self.blocks, x_BTD, None, mask, train, length=len(where), compute=self.compute, places=where
        )
        pooled_BD = self.pooler(hidden_BTD) if self.task in POOLED else None
        return heads.output(self, tokens, hidden_BTD, summary_BD=pooled_BD, pooled_BD=pooled_BD, train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)


POOLED = ("base", "pretraining", "sequence-classification", "multiple-choice")


def places(cfg: Config) -> np.ndarray:
    """The group, and the block of its layers, whose parameters each block has: [layers * blocks of a layer, 2].

    Where the groups do not divide the layers, the first ones are larger.
    """
    groups = [int(layer / (cfg.num_layers / cfg.num_groups)) for layer in range(cfg.num_layers)]
    return np.array([(group, block) for group in groups for block in range(cfg.layer_blocks)])


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution cut at two standard deviations, as in the code released with the paper."""
    return nn.initializers.truncated_normal(cfg.init_std)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "AlbertModel",
    "masked-lm": "AlbertForMaskedLM",
    "pretraining": "AlbertForPreTraining",
    "sequence-classification": "AlbertForSequenceClassification",
    "token-classification": "AlbertForTokenClassification",
    "question-answering": "AlbertForQuestionAnswering",
    "multiple-choice": "AlbertForMultipleChoice",
}
HF_MODEL_TYPE = "albert"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "embed_width": "embedding_size",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_groups": "num_hidden_groups",
    "layer_blocks": "inner_group_num",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "init_std": "initializer_range",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "head_dropout": "classifier_dropout_prob",
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "embedding_size": 128,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
    "classifier_dropout_prob": 0.1,
    "problem_type": None,
}
HF_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "tie_word_embeddings": True,
}
HF_PREFIX = "albert."
_LAYER = "encoder.albert_layer_groups.*.albert_layers.*."
HF_WEIGHTS = (
    # theirs                                               ours                                 layout, theirs -> ours
    ("embeddings.word_embeddings.weight",                   "token_embed/embedding",         "V E -> V E"),
    ("embeddings.position_embeddings.weight",               "position_embed/embedding",      "T E -> T E"),
    ("embeddings.token_type_embeddings.weight",             "segment_embed/embedding",       "S E -> S E"),
    ("embeddings.LayerNorm.weight",                         "embed_norm/scale",              "E -> E"),
    ("embeddings.LayerNorm.bias",                           "embed_norm/bias",               "E -> E"),
    ("encoder.embedding_hidden_mapping_in.weight",          "embed_project/kernel",          "D E -> E D"),
    ("encoder.embedding_hidden_mapping_in.bias",            "embed_project/bias",            "D -> D"),
    (_LAYER + "attention.query.weight",                     "blocks/attention/query/kernel", "(H K) D -> D H K"),
    (_LAYER + "attention.query.bias",                       "blocks/attention/query/bias",   "(H K) -> H K"),
    (_LAYER + "attention.key.weight",                       "blocks/attention/key/kernel",   "(H K) D -> D H K"),
    (_LAYER + "attention.key.bias",                         "blocks/attention/key/bias",     "(H K) -> H K"),
    (_LAYER + "attention.value.weight",                     "blocks/attention/value/kernel", "(H K) D -> D H K"),
    (_LAYER + "attention.value.bias",                       "blocks/attention/value/bias",   "(H K) -> H K"),
    (_LAYER + "attention.dense.weight",                     "blocks/attention/out/kernel",   "D (H K) -> H K D"),
    (_LAYER + "attention.dense.bias",                       "blocks/attention/out/bias",     "D -> D"),
    (_LAYER + "attention.LayerNorm.weight",                 "blocks/attention_norm/scale",   "D -> D"),
    (_LAYER + "attention.LayerNorm.bias",                   "blocks/attention_norm/bias",    "D -> D"),
    (_LAYER + "ffn.weight",                                 "blocks/mlp_up/kernel",          "F D -> D F"),
    (_LAYER + "ffn.bias",                                   "blocks/mlp_up/bias",            "F -> F"),
    (_LAYER + "ffn_output.weight",                          "blocks/mlp_down/kernel",        "D F -> F D"),
    (_LAYER + "ffn_output.bias",                            "blocks/mlp_down/bias",          "D -> D"),
    (_LAYER + "full_layer_layer_norm.weight",               "blocks/mlp_norm/scale",         "D -> D"),
    (_LAYER + "full_layer_layer_norm.bias",                 "blocks/mlp_norm/bias",          "D -> D"),
    ("pooler.weight",                                       "pooler/dense/kernel",           "E D -> D E"),
    ("pooler.bias",                                         "pooler/dense/bias",             "E -> E"),
)  # fmt: skip
_LANGUAGE_MODEL = (
    ("predictions.dense.weight",                            "lm_head/dense/kernel",          "E D -> D E"),
    ("predictions.dense.bias",                              "lm_head/dense/bias",            "E -> E"),
    ("predictions.LayerNorm.weight",                        "lm_head/norm/scale",            "E -> E"),
    ("predictions.LayerNorm.bias",                          "lm_head/norm/bias",             "E -> E"),
    ("predictions.bias",                                    "lm_head/bias",                  "V -> V"),
)  # fmt: skip
_SENTENCE_ORDER = (
    ("sop_classifier.classifier.weight",                    "head/scores/kernel",            "C D -> D C"),
    ("sop_classifier.classifier.bias",                      "head/scores/bias",              "C -> C"),
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
    "pretraining": _LANGUAGE_MODEL + _SENTENCE_ORDER,
    "sequence-classification": _CLASSIFIER,
    "token-classification": _CLASSIFIER,
    "question-answering": _ANSWER,
    "multiple-choice": _CLASSIFIER,
}
HF_TIED = {
    "predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "predictions.decoder.bias": "/predictions.bias",
}
HF_IGNORE = ((r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),)
