"""DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter, Sanh et al. 2019."""

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
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, no or
            equal labels.
    """

    vocab_size: int = 30522
    max_length: int = 512
    sinusoidal: bool = False  # what a fresh table of positions holds: sinusoids, or random numbers
    width: int = 768
    num_layers: int = 6
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    init_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.2  # of classifiers of sequences and of choices
    answer_dropout: float = 0.1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "width", "num_layers", "num_heads", "mlp_dim")
        check_heads(self.width, self.num_heads)
        check_rates(self, "hidden_dropout", "attention_dropout", "head_dropout", "answer_dropout")
        check_activation(self.activation)
        check_labels(self.labels)


PRESETS = {
    "distilbert-base-uncased": ("distilbert/distilbert-base-uncased", Config()),
    "distilbert-base-cased": ("distilbert/distilbert-base-cased", Config(vocab_size=28996)),
    "distilbert-base-multilingual-cased": ("distilbert/distilbert-base-multilingual-cased", Config(vocab_size=119547)),
    "distilbert-base-uncased-finetuned-sst-2-english": (
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        Config(labels=("NEGATIVE", "POSITIVE")),
    ),
}
NORM_EPSILON = 1e-12  # that of BERT, and no setting


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in BERT; dropout comes behind the second only."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        dense = functools.partial(compute.dense, kernel_init=init)
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention",
        )  # fmt: skip

        y_BTD = attention(x_BTD, attention.keys_values(x_BTD), mask=mask, train=train)
        x_BTD = norm(name="attention_norm")(x_BTD + y_BTD)
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        return norm(name="mlp_norm")(x_BTD + drop(dense(cfg.width, name="mlp_down")(h_BTF))), None


class Model(nn.Module):
    """DistilBERT with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "masked-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed = Embedding(cfg.max_length, cfg.width, compute, sinusoids if cfg.sinusoidal else init)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.blocks = Block(cfg, compute)
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(self.token_embed, cfg.activation, norm, compute, init)
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, init, **judge(cfg, self.task))

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Reads whole rows. There are no segments: texts are told apart by the separator between them.

        Args:
            tokens_BT: ids, int[B, T]; for multiple-choice [B, C, T], a row for each choice, as are the others then.
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: by default counted over the real tokens of the row.
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

        x_BTD = self.embed_norm(self.token_embed(tokens_BT) + self.position_embed(positions_BT))
        x_BTD = self.embed_drop(x_BTD, deterministic=not train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        hidden_BTD, _ = stack(self.blocks, x_BTD, None, mask, train, length=cfg.num_layers, compute=self.compute)
        return heads.output(self, tokens, hidden_BTD, summary_BD=hidden_BTD[:, 0], train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)


def judge(cfg: Config, task: str) -> dict[str, Any]:
    """How the head of a task judges: of sequences by the first token, with a hidden layer where BERT has its pooler."""
    whole = {"activation": "relu", "dropout": cfg.head_dropout}
    return {
        "sequence-classification": whole,
        "multiple-choice": whole,
        "token-classification": {"dropout": cfg.hidden_dropout},
        "question-answering": {"dropout": cfg.answer_dropout},
    }[task]


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution. (In the paper it is BERT's weights: every second layer.)"""
    return nn.initializers.normal(cfg.init_std)


def sinusoids(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """[T, D]: a sine and a cosine in turn, of wavelengths from 2 pi to 10000 times that (Vaswani et al. 2017, section
    3.5)."""
    T, D = shape
    place_TD, number_D = np.arange(T)[:, None], np.arange(D)
    angles_TD = place_TD / 10000 ** (2 * (number_D // 2) / D)
    return jnp.asarray(np.where(number_D % 2, np.cos(angles_TD), np.sin(angles_TD)), dtype)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "DistilBertModel",
    "masked-lm": "DistilBertForMaskedLM",
    "sequence-classification": "DistilBertForSequenceClassification",
    "token-classification": "DistilBertForTokenClassification",
    "question-answering": "DistilBertForQuestionAnswering",
    "multiple-choice": "DistilBertForMultipleChoice",
}
HF_MODEL_TYPE = "distilbert"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "sinusoidal": "sinusoidal_pos_embds",
    "width": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "mlp_dim": "hidden_dim",
    "activation": "activation",
    "init_std": "initializer_range",
    "hidden_dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "head_dropout": "seq_classif_dropout",
    "answer_dropout": "qa_dropout",
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "sinusoidal_pos_embds": False,
    "activation": "gelu",
    "initializer_range": 0.02,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "qa_dropout": 0.1,
    "problem_type": None,
}
HF_FIXED = {"tie_word_embeddings": True}
HF_PREFIX = "distilbert."
HF_WEIGHTS = (
    # theirs                                        ours                                 layout, theirs -> ours
    ("embeddings.word_embeddings.weight",           "token_embed/embedding",         "V D -> V D"),
    ("embeddings.position_embeddings.weight",       "position_embed/embedding",      "T D -> T D"),
    ("embeddings.LayerNorm.weight",                 "embed_norm/scale",              "D -> D"),
    ("embeddings.LayerNorm.bias",                   "embed_norm/bias",               "D -> D"),
    ("transformer.layer.*.attention.q_lin.weight",  "blocks/attention/query/kernel", "(H K) D -> D H K"),
    ("transformer.layer.*.attention.q_lin.bias",    "blocks/attention/query/bias",   "(H K) -> H K"),
    ("transformer.layer.*.attention.k_lin.weight",  "blocks/attention/key/kernel",   "(H K) D -> D H K"),
    ("transformer.layer.*.attention.k_lin.bias",    "blocks/attention/key/bias",     "(H K) -> H K"),
    ("transformer.layer.*.attention.v_lin.weight",  "blocks/attention/value/kernel", "(H K) D -> D H K"),
    ("transformer.layer.*.attention.v_lin.bias",    "blocks/attention/value/bias",   "(H K) -> H K"),
    ("transformer.layer.*.attention.out_lin.weight", "blocks/attention/out/kernel",  "D (H K) -> H K D"),
    ("transformer.layer.*.attention.out_lin.bias",  "blocks/attention/out/bias",     "D -> D"),
    ("transformer.layer.*.sa_layer_norm.weight",    "blocks/attention_norm/scale",   "D -> D"),
    ("transformer.layer.*.sa_layer_norm.bias",      "blocks/attention_norm/bias",    "D -> D"),
    ("transformer.layer.*.ffn.lin1.weight",         "blocks/mlp_up/kernel",          "F D -> D F"),
    ("transformer.layer.*.ffn.lin1.bias",           "blocks/mlp_up/bias",            "F -> F"),
    ("transformer.layer.*.ffn.lin2.weight",         "blocks/mlp_down/kernel",        "D F -> F D"),
    ("transformer.layer.*.ffn.lin2.bias",           "blocks/mlp_down/bias",          "D -> D"),
    ("transformer.layer.*.output_layer_norm.weight", "blocks/mlp_norm/scale",        "D -> D"),
    ("transformer.layer.*.output_layer_norm.bias",  "blocks/mlp_norm/bias",          "D -> D"),
)  # fmt: skip
_SCORES = (
    ("classifier.weight",                           "head/scores/kernel",            "C D -> D C"),
    ("classifier.bias",                             "head/scores/bias",              "C -> C"),
)  # fmt: skip
_CLASSIFIER = (
    ("pre_classifier.weight",                       "head/dense/kernel",             "E D -> D E"),
    ("pre_classifier.bias",                         "head/dense/bias",               "E -> E"),
    *_SCORES,
)  # fmt: skip
HF_HEADS = {
    "masked-lm": (
        ("vocab_transform.weight",                  "lm_head/dense/kernel",          "E D -> D E"),
        ("vocab_transform.bias",                    "lm_head/dense/bias",            "E -> E"),
        ("vocab_layer_norm.weight",                 "lm_head/norm/scale",            "E -> E"),
        ("vocab_layer_norm.bias",                   "lm_head/norm/bias",             "E -> E"),
        ("vocab_projector.bias",                    "lm_head/bias",                  "V -> V"),
    ),
    "sequence-classification": _CLASSIFIER,
    "token-classification": _SCORES,
    "question-answering": (
        ("qa_outputs.weight",                       "head/scores/kernel",            "C D -> D C"),
        ("qa_outputs.bias",                         "head/scores/bias",              "C -> C"),
    ),
    "multiple-choice": _CLASSIFIER,
}  # fmt: skip
HF_TIED = {"vocab_projector.weight": "embeddings.word_embeddings.weight"}
HF_IGNORE = ((r"embeddings\.position_ids", "the numbers 0, 1, 2, ..., which old versions saved as a buffer"),)
