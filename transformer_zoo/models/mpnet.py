"""MPNet: Masked and Permuted Pre-training for Language Understanding, Song et al. 2020."""

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import Compute, Embedding, Output, PostNormBlock, TokenEmbedding, heads, stack
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import check_heads, check_ids, check_labels, check_rates, check_sizes, check_tokens
from transformer_zoo.nn.positions import encoder_inputs, relative_buckets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, no or
            equal labels.
    """

    vocab_size: int = 30527
    max_length: int = 512  # tokens in a row; the table of positions has pad_id + 1 rows more
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says
    pad_id: ClassVar[int] = 1  # of every MPNet

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "width", "num_layers", "num_heads", "mlp_dim")
        check_heads(self.width, self.num_heads)
        check_rates(self, "hidden_dropout", "attention_dropout")
        check_activation(self.activation)
        check_labels(self.labels)


PRESETS = {
    "mpnet-base": ("microsoft/mpnet-base", Config()),
    "all-mpnet-base-v2": ("sentence-transformers/all-mpnet-base-v2", Config()),
}
NUM_BUCKETS, FARTHEST = 32, 128  # of distances; no checkpoint has others, nor would the reference read them


class Model(nn.Module):
    """MPNet with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "masked-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed = Embedding(cfg.max_length + position_offset(cfg), cfg.width, compute, init)
        self.relative_bias = nn.Embed(
            NUM_BUCKETS, cfg.num_heads, dtype=compute.accumulation_dtype, param_dtype=compute.param_dtype,
            embedding_init=init,
        )  # fmt: skip
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.blocks = PostNormBlock(cfg, compute, init)
        if self.task in POOLED:
            self.pooler = heads.Pooler("tanh", compute, init)
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(self.token_embed, "gelu", norm, compute, init)
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, init, **judge(cfg, self.task))

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Reads whole rows. There are no segments: texts are told apart by the separators between them.

        Args:
            tokens_BT: ids, int[B, T]; for multiple-choice [B, C, T], a row for each choice, as are the others then.
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: by default counted over the real tokens of the row, from 0.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ.
        """
        cfg, tokens = self.config, tokens_BT
        tokens_BT, valid_BT, positions_BT = heads.as_rows(
            self.task, tokens_BT, valid_BT=valid_BT, positions_BT=positions_BT
        )
        check_tokens(tokens_BT, cfg.vocab_size, cfg.max_length)
        positions_BT, mask = encoder_inputs(tokens_BT, valid_BT, positions_BT)
        check_ids(positions_BT, cfg.max_length, "positions_BT", "the positions")

        x_BTD = self.token_embed(tokens_BT) + self.position_embed(positions_BT + position_offset(cfg))
        x_BTD = self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        bias_HTT = self.distance_bias(tokens_BT.shape[1])
        hidden_BTD, _ = stack(
            self.blocks, x_BTD, None, mask, bias_HTT[None], train, length=cfg.num_layers, compute=self.compute
        )
        pooled_BD = self.pooler(hidden_BTD) if self.task in POOLED else None
        summary_BD = hidden_BTD[:, 0] if pooled_BD is None else pooled_BD
        return heads.output(self, tokens, hidden_BTD, summary_BD=summary_BD, pooled_BD=pooled_BD, train=train)

    def distance_bias(self, T: int) -> jax.Array:
        """What is added to the scores [H, T, T] of all layers, by how far a key stands before or behind a query."""
        bias_RH = self.relative_bias(relative_buckets(T, NUM_BUCKETS, FARTHEST))  # R: 1 - T to T - 1
        return bias_RH[jnp.arange(T) - jnp.arange(T)[:, None] + T - 1].transpose(2, 0, 1)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)


POOLED = ("base", "multiple-choice")


def judge(cfg: Config, task: str) -> dict[str, Any]:
    """How the head of a task judges: of sequences with a hidden layer of its own, which is no pooler."""
    dropout = {"dropout": cfg.hidden_dropout}
    return {
        "sequence-classification": {"activation": "tanh", "hidden_dropout": cfg.hidden_dropout, **dropout},
        "token-classification": dropout,
        "multiple-choice": dropout,
    }.get(task, {})


def position_offset(cfg: Config) -> int:
    """The row of the first token's position: those before are padding's, and of what was never there."""
    return cfg.pad_id + 1


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution, as in the code released with the paper."""
    return nn.initializers.normal(cfg.init_std)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "MPNetModel",
    "masked-lm": "MPNetForMaskedLM",
    "sequence-classification": "MPNetForSequenceClassification",
    "token-classification": "MPNetForTokenClassification",
    "question-answering": "MPNetForQuestionAnswering",
    "multiple-choice": "MPNetForMultipleChoice",
}
HF_MODEL_TYPE = "mpnet"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": (
        "max_position_embeddings",
        lambda rows, theirs: rows - position_offset(Config),
        lambda length, cfg: length + position_offset(cfg),
    ),
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "activation": "hidden_act",
    "norm_epsilon": "layer_norm_eps",
    "init_std": "initializer_range",
    "hidden_dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "problem_type": None,
}
HF_FIXED = {"relative_attention_num_buckets": NUM_BUCKETS, "pad_token_id": Config.pad_id, "tie_word_embeddings": True}
HF_PREFIX = "mpnet."
HF_WEIGHTS = (
    # theirs                                               ours                                 layout, theirs -> ours
    ("embeddings.word_embeddings.weight",                   "token_embed/embedding",         "V D -> V D"),
    ("embeddings.position_embeddings.weight",               "position_embed/embedding",      "T D -> T D"),
    ("embeddings.LayerNorm.weight",                         "embed_norm/scale",              "D -> D"),
    ("embeddings.LayerNorm.bias",                           "embed_norm/bias",               "D -> D"),
    ("encoder.relative_attention_bias.weight",              "relative_bias/embedding",       "R H -> R H"),
    ("encoder.layer.*.attention.attn.q.weight",             "blocks/attention/query/kernel", "(H K) D -> D H K"),
    ("encoder.layer.*.attention.attn.q.bias",               "blocks/attention/query/bias",   "(H K) -> H K"),
    ("encoder.layer.*.attention.attn.k.weight",             "blocks/attention/key/kernel",   "(H K) D -> D H K"),
    ("encoder.layer.*.attention.attn.k.bias",               "blocks/attention/key/bias",     "(H K) -> H K"),
    ("encoder.layer.*.attention.attn.v.weight",             "blocks/attention/value/kernel", "(H K) D -> D H K"),
    ("encoder.layer.*.attention.attn.v.bias",               "blocks/attention/value/bias",   "(H K) -> H K"),
    ("encoder.layer.*.attention.attn.o.weight",             "blocks/attention/out/kernel",   "D (H K) -> H K D"),
    ("encoder.layer.*.attention.attn.o.bias",               "blocks/attention/out/bias",     "D -> D"),
    ("encoder.layer.*.attention.LayerNorm.weight",          "blocks/attention_norm/scale",   "D -> D"),
    ("encoder.layer.*.attention.LayerNorm.bias",            "blocks/attention_norm/bias",    "D -> D"),
    ("encoder.layer.*.intermediate.dense.weight",           "blocks/mlp_up/kernel",          "F D -> D F"),
    ("encoder.layer.*.intermediate.dense.bias",             "blocks/mlp_up/bias",            "F -> F"),
    ("encoder.layer.*.output.dense.weight",                 "blocks/mlp_down/kernel",        "D F -> F D"),
    ("encoder.layer.*.output.dense.bias",                   "blocks/mlp_down/bias",          "D -> D"),
    ("encoder.layer.*.output.LayerNorm.weight",             "blocks/mlp_norm/scale",         "D -> D"),
    ("encoder.layer.*.output.LayerNorm.bias",               "blocks/mlp_norm/bias",          "D -> D"),
    ("pooler.dense.weight",                                 "pooler/dense/kernel",           "E D -> D E"),
    ("pooler.dense.bias",                                   "pooler/dense/bias",             "E -> E"),
)  # fmt: skip
_SCORES = (
    ("classifier.weight",                                   "head/scores/kernel",            "C D -> D C"),
    ("classifier.bias",                                     "head/scores/bias",              "C -> C"),
)  # fmt: skip
HF_HEADS = {
    "masked-lm": (
        ("lm_head.dense.weight",                            "lm_head/dense/kernel",          "E D -> D E"),
        ("lm_head.dense.bias",                              "lm_head/dense/bias",            "E -> E"),
        ("lm_head.layer_norm.weight",                       "lm_head/norm/scale",            "E -> E"),
        ("lm_head.layer_norm.bias",                         "lm_head/norm/bias",             "E -> E"),
        ("lm_head.bias",                                    "lm_head/bias",                  "V -> V"),
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
    "multiple-choice": _SCORES,
}  # fmt: skip
HF_TIED = {
    "lm_head.decoder.weight": "embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "/lm_head.bias",
}
HF_IGNORE = ((r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),)
