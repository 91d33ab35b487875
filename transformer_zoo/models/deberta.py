"""DeBERTa: Decoding-enhanced BERT with Disentangled Attention, He et al. 2020."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import Compute, Embedding, Mask, Output, TokenEmbedding, heads, stack
from transformer_zoo.nn.activations import ACTIVATIONS, check_activation
from transformer_zoo.nn.checks import (
    check_choice,
    check_heads,
    check_ids,
    check_labels,
    check_rates,
    check_sizes,
    check_tokens,
)
from transformer_zoo.nn.disentangled import TERMS, DisentangledAttention, real, terms_of
from transformer_zoo.nn.positions import encoder_inputs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation or term, no rate of
            dropout, no or equal labels.
    """

    vocab_size: int = 50265
    max_length: int = 512
    num_segments: int = 0  # no published model knows segments
    embed_width: int | None = None  # None: as width
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-7
    init_std: float = 0.02
    absolute_positions: bool = True  # are added to the tokens; without them rows may be of any length
    relative_attention: bool = True
    position_terms: str = TERMS[0]  # of the attention, besides that of contents
    max_distance: int | None = None  # farther ones are as near as this one. None: as max_length
    talking_heads: bool = False  # mix their scores and their weights
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    pooler_dropout: float = 0.0
    head_dropout: float | None = None  # None: as hidden_dropout
    pooler_activation: str = "gelu"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "embed_width", "width", "num_layers", "num_heads", "mlp_dim")
        check_sizes(self, "max_distance")
        check_heads(self.width, self.num_heads)
        check_rates(self, "hidden_dropout", "attention_dropout", "pooler_dropout", "head_dropout")
        check_activation(self.activation)
        check_choice(self, "pooler_activation", tuple(ACTIVATIONS))
        check_choice(self, "position_terms", TERMS)
        check_labels(self.labels)
        if self.num_segments < 0:
            raise ValueError(f"num_segments is {self.num_segments}: it must be at least 0")


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    name: (f"microsoft/{name}", Config(absolute_positions=False, **sizes))
    for name, sizes in {
        "deberta-base": {},
        "deberta-large": _LARGE,
        "deberta-xlarge": _LARGE | {"num_layers": 48},
    }.items()
}


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in BERT, with disentangled attention."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, table_RD: Any, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        dense = functools.partial(compute.dense, kernel_init=init)
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        attention = DisentangledAttention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, dropout=cfg.attention_dropout,
            terms=cfg.position_terms, table_dropout=cfg.hidden_dropout, key_bias=False, talk=cfg.talking_heads,
            init=init, out_init=init, name="attention",
        )  # fmt: skip

        y_BTD = attention(x_BTD, attention.keys_values(x_BTD), table_RD, mask=mask, train=train)
        x_BTD = norm(name="attention_norm")(x_BTD + drop(y_BTD))
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        return norm(name="mlp_norm")(x_BTD + drop(dense(cfg.width, name="mlp_down")(h_BTF))), None


class Model(nn.Module):
    """DeBERTa with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "masked-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        table = functools.partial(Embedding, compute=compute, init=init)
        embed_width = cfg.embed_width or cfg.width
        self.token_embed = TokenEmbedding(cfg.vocab_size, embed_width, compute, init)
        if cfg.absolute_positions:
            self.position_embed = table(cfg.max_length, embed_width)
        if cfg.num_segments:
            self.segment_embed = table(cfg.num_segments, embed_width)
        if embed_width != cfg.width:
            self.embed_project = compute.dense(cfg.width, use_bias=False, kernel_init=init)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        if cfg.relative_attention:
            self.relative_embed = table(2 * (cfg.max_distance or cfg.max_length), cfg.width)
        self.blocks = Block(cfg, compute)
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(self.token_embed, cfg.activation, norm, compute, init)
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, init, **judge(cfg, self.task))

    def __call__(
        self,
        tokens_BT: jax.Array,
        segments_BT: jax.Array | None = None,
        valid_BT: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Reads whole rows.

        Args:
            tokens_BT: ids, int[B, T]; for multiple-choice [B, C, T], a row for each choice, as are the others then.
            segments_BT: the number of the text that a token belongs to, from 0. None: all 0. Models that know no
                segments, as all published ones, disregard it.
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ.
        """
        cfg, tokens = self.config, tokens_BT
        tokens_BT, segments_BT, valid_BT = heads.as_rows(
            self.task, tokens_BT, segments_BT=segments_BT, valid_BT=valid_BT
        )
        check_tokens(tokens_BT, cfg.vocab_size, cfg.max_length if cfg.absolute_positions else None)
        positions_BT, mask = encoder_inputs(tokens_BT, valid_BT, None)
        # Padding is zero, and sees nothing: it attends to all alike.
        mask = mask.replace(documents_BT=mask.valid_BS, documents_BS=mask.valid_BS)

        x_BTD = self.token_embed(tokens_BT)
        if cfg.absolute_positions:
            x_BTD += self.position_embed(positions_BT)
        if cfg.num_segments:
            segments_BT = jnp.zeros_like(tokens_BT) if segments_BT is None else segments_BT
            check_ids(segments_BT, cfg.num_segments, "segments_BT", "the segments")
            x_BTD += self.segment_embed(segments_BT)
        if cfg.embed_width not in (None, cfg.width):
            x_BTD = self.embed_project(x_BTD)
        x_BTD = self.embed_drop(real(self.embed_norm(x_BTD), mask), deterministic=not train)
        self.sow("intermediates", "embedded_BTD", x_BTD)

        table_RD = self.relative_embed.embedding.astype(x_BTD.dtype) if cfg.relative_attention else None
        hidden_BTD, _ = stack(
            self.blocks, x_BTD, None, table_RD, mask, train, length=cfg.num_layers, compute=self.compute
        )
        return heads.output(self, tokens, hidden_BTD, summary_BD=hidden_BTD[:, 0], train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)


def judge(cfg: Config, task: str) -> dict[str, Any]:
    """The settings of a task's classifier: sequences are judged by their first token, through a hidden layer."""
    if task == "question-answering":
        return {}
    if task == "token-classification":
        return {"dropout": cfg.hidden_dropout}
    return {
        "dropout": cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout,
        "activation": cfg.pooler_activation,
        "hidden_dropout": cfg.pooler_dropout,
    }


def initializer(cfg: Config) -> Any:
    """For all weights, as in the code released with the paper."""
    return nn.initializers.normal(cfg.init_std)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "DebertaModel",
    "masked-lm": "DebertaForMaskedLM",
    "sequence-classification": "DebertaForSequenceClassification",
    "token-classification": "DebertaForTokenClassification",
    "question-answering": "DebertaForQuestionAnswering",
}
HF_MODEL_TYPE = "deberta"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "num_segments": "type_vocab_size",
    "embed_width": (
        "embedding_size",
        lambda width, settings: None if width == settings["hidden_size"] else width,
        lambda width, config: width or config.width,
    ),
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "init_std": "initializer_range",
    "absolute_positions": "position_biased_input",
    "relative_attention": "relative_attention",
    "position_terms": (
        "pos_att_type",
        lambda words, _: terms_of(words),
        lambda terms, _: terms.split("|") if terms else [],
    ),
    "max_distance": ("max_relative_positions", lambda n, _: n if n > 0 else None, lambda n, _: n or -1),
    "talking_heads": "talking_head",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "pooler_dropout": "pooler_dropout",
    "head_dropout": "cls_dropout",
    "pooler_activation": "pooler_hidden_act",
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "embedding_size": None,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
    "initializer_range": 0.02,
    "position_biased_input": True,
    "relative_attention": False,
    "pos_att_type": None,
    "max_relative_positions": -1,
    "talking_head": False,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "pooler_dropout": 0,
    "cls_dropout": None,
    "pooler_hidden_act": "gelu",
    "problem_type": None,
}
HF_FIXED = {
    "tie_word_embeddings": True,
}
HF_PREFIX = "deberta."
_LAYER = "encoder.layer.*."
_SELF = _LAYER + "attention.self."
HF_WEIGHTS = (
    # theirs                                       ours                                         layout, theirs -> ours
    ("embeddings.word_embeddings.weight",          "token_embed/embedding",                     "V E -> V E"),
    ("embeddings.position_embeddings.weight",      "position_embed/embedding",                  "T E -> T E"),
    ("embeddings.token_type_embeddings.weight",    "segment_embed/embedding",                   "S E -> S E"),
    ("embeddings.embed_proj.weight",               "embed_project/kernel",                      "D E -> E D"),
    ("embeddings.LayerNorm.weight",                "embed_norm/scale",                          "D -> D"),
    ("embeddings.LayerNorm.bias",                  "embed_norm/bias",                           "D -> D"),
    ("encoder.rel_embeddings.weight",              "relative_embed/embedding",                  "R D -> R D"),
    (_SELF + "in_proj.weight",                     "blocks/attention/{query,key,value}/kernel", "(H n K) D -> n D H K"),
    (_SELF + "q_bias",                             "blocks/attention/query/bias",               "(H K) -> H K"),
    (_SELF + "v_bias",                             "blocks/attention/value/bias",               "(H K) -> H K"),
    (_SELF + "pos_proj.weight",                    "blocks/attention/position_key/kernel",      "(H K) D -> D H K"),
    (_SELF + "pos_q_proj.weight",                  "blocks/attention/position_query/kernel",    "(H K) D -> D H K"),
    (_SELF + "pos_q_proj.bias",                    "blocks/attention/position_query/bias",      "(H K) -> H K"),
    (_SELF + "head_logits_proj.weight",            "blocks/attention/mix_scores/kernel",        "G H -> H G"),
    (_SELF + "head_weights_proj.weight",           "blocks/attention/mix_weights/kernel",       "G H -> H G"),
    (_LAYER + "attention.output.dense.weight",     "blocks/attention/out/kernel",               "D (H K) -> H K D"),
    (_LAYER + "attention.output.dense.bias",       "blocks/attention/out/bias",                 "D -> D"),
    (_LAYER + "attention.output.LayerNorm.weight", "blocks/attention_norm/scale",               "D -> D"),
    (_LAYER + "attention.output.LayerNorm.bias",   "blocks/attention_norm/bias",                "D -> D"),
    (_LAYER + "intermediate.dense.weight",         "blocks/mlp_up/kernel",                      "F D -> D F"),
    (_LAYER + "intermediate.dense.bias",           "blocks/mlp_up/bias",                        "F -> F"),
    (_LAYER + "output.dense.weight",               "blocks/mlp_down/kernel",                    "D F -> F D"),
    (_LAYER + "output.dense.bias",                 "blocks/mlp_down/bias",                      "D -> D"),
    (_LAYER + "output.LayerNorm.weight",           "blocks/mlp_norm/scale",                     "D -> D"),
    (_LAYER + "output.LayerNorm.bias",             "blocks/mlp_norm/bias",                      "D -> D"),
)  # fmt: skip
_LANGUAGE_MODEL = (
    ("cls.predictions.transform.dense.weight",     "lm_head/dense/kernel",                      "E D -> D E"),
    ("cls.predictions.transform.dense.bias",       "lm_head/dense/bias",                        "E -> E"),
    ("cls.predictions.transform.LayerNorm.weight", "lm_head/norm/scale",                        "E -> E"),
    ("cls.predictions.transform.LayerNorm.bias",   "lm_head/norm/bias",                         "E -> E"),
    ("cls.predictions.bias",                       "lm_head/bias",                              "V -> V"),
)  # fmt: skip
_POOLED = (
    ("pooler.dense.weight",                        "head/dense/kernel",                         "E D -> D E"),
    ("pooler.dense.bias",                          "head/dense/bias",                           "E -> E"),
)  # fmt: skip
_CLASSIFIER = (
    ("classifier.weight",                          "head/scores/kernel",                        "C D -> D C"),
    ("classifier.bias",                            "head/scores/bias",                          "C -> C"),
)  # fmt: skip
_ANSWER = (
    ("qa_outputs.weight",                          "head/scores/kernel",                        "C D -> D C"),
    ("qa_outputs.bias",                            "head/scores/bias",                          "C -> C"),
)  # fmt: skip
HF_HEADS = {
    "masked-lm": _LANGUAGE_MODEL,
    "sequence-classification": _POOLED + _CLASSIFIER,
    "token-classification": _CLASSIFIER,
    "question-answering": _ANSWER,
}
# The published checkpoints, and those of which config.json says `"legacy": false`, have another name for the same head.
HF_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "/cls.predictions.bias",
    "lm_predictions.lm_head.dense.weight": "/cls.predictions.transform.dense.weight",
    "lm_predictions.lm_head.dense.bias": "/cls.predictions.transform.dense.bias",
    "lm_predictions.lm_head.LayerNorm.weight": "/cls.predictions.transform.LayerNorm.weight",
    "lm_predictions.lm_head.LayerNorm.bias": "/cls.predictions.transform.LayerNorm.bias",
    "lm_predictions.lm_head.bias": "/cls.predictions.bias",
}
HF_IGNORE = (
    (r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),
    (r"embeddings\.position_embeddings\.weight", "of the decoder of hidden tokens, which the reference does not have"),
)
