"""DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter, Sanh et al. 2019.

It is BERT (`bert.py`) without segments and without a pooler. The paper's model begins as every second layer of BERT.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Architecture, Attention, Compute, Embedding, Encoder, Head, Inputs, Mask, TokenEmbedding
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.published import Key, Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes."""

    vocab_size: int = 30522
    max_length: int = 512
    sinusoidal: bool = False  # whether a fresh table of positions holds sinusoids; otherwise random numbers
    width: int = 768
    num_layers: int = 6
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    init_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.2  # of sequence-classification and multiple-choice
    answer_dropout: float = 0.1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


PRESETS = {
    "distilbert-base-uncased": ("distilbert/distilbert-base-uncased", Config()),
    "distilbert-base-cased": ("distilbert/distilbert-base-cased", Config(vocab_size=28996)),
    "distilbert-base-multilingual-cased": ("distilbert/distilbert-base-multilingual-cased", Config(vocab_size=119547)),
    "distilbert-base-uncased-finetuned-sst-2-english": (
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        Config(labels=("NEGATIVE", "POSITIVE")),
    ),
}
NORM_EPSILON = 1e-12  # as BERT's; config.json has no key for it


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in BERT; with dropout after the second only."""

    config: Config
    compute: Compute
    init: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, init = self.config, self.compute, self.init
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


class Model(Encoder):
    """DistilBERT with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed = Embedding(cfg.max_length, cfg.width, compute, sinusoids if cfg.sinusoidal else init)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.blocks = Block(cfg, compute, init)

        classifier = Head(hidden="relu", dropout=cfg.head_dropout)
        self.add_head(init, norm, {
            "base": Head(),
            "masked-lm": Head(vocabulary=cfg.activation),
            "sequence-classification": classifier,
            "token-classification": Head(dropout=cfg.hidden_dropout),
            "question-answering": Head(dropout=cfg.answer_dropout),
            "multiple-choice": classifier,
        })  # fmt: skip

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTD = self.token_embed(inputs.tokens_BT) + self.position_embed(inputs.positions_BT)
        return self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        return self.run(self.blocks, x_BTD, None, inputs.mask, train)


def sinusoids(key: jax.Array, shape: tuple[int, int], dtype: Any) -> jax.Array:
    """[T, D]: sine and cosine in turn, of wavelengths from 2 pi to 20000 pi (Vaswani et al. 2017, section 3.5)."""
    T, D = shape
    column_D = np.arange(D)
    angles_TD = np.arange(T)[:, None] / 10000 ** (2 * (column_D // 2) / D)
    return jnp.asarray(np.where(column_D % 2, np.cos(angles_TD), np.sin(angles_TD)), dtype)


_LAYER = "transformer.layer.*."
_CLASSIFIER = (*rows.dense("pre_classifier", "head/dense"), *bert_layout.CLASSIFIER)
PUBLISHED = Published(
    model_type="distilbert",
    class_prefix="DistilBert",
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("max_position_embeddings"),
        "sinusoidal": Key("sinusoidal_pos_embds", False),
        "width": Key("dim"),
        "num_layers": Key("n_layers"),
        "num_heads": Key("n_heads"),
        "mlp_dim": Key("hidden_dim"),
        "activation": Key("activation", "gelu"),
        "init_std": Key("initializer_range", 0.02),
        "hidden_dropout": Key("dropout", 0.1),
        "attention_dropout": Key("attention_dropout", 0.1),
        "head_dropout": Key("seq_classif_dropout", 0.2),
        "answer_dropout": Key("qa_dropout", 0.1),
        "problem": Key("problem_type", None),
    },
    fixed=bert_layout.TIED_WORDS,
    prefix="distilbert.",
    body=(
        *bert_layout.EMBEDDINGS,
        *rows.attention(_LAYER + "attention", "blocks/attention", "q_lin k_lin v_lin", _LAYER + "attention.out_lin"),
        *rows.norm(_LAYER + "sa_layer_norm", "blocks/attention_norm"),
        *rows.dense(_LAYER + "ffn.lin1", "blocks/mlp_up"),
        *rows.dense(_LAYER + "ffn.lin2", "blocks/mlp_down"),
        *rows.norm(_LAYER + "output_layer_norm", "blocks/mlp_norm"),
    ),
    heads={
        "masked-lm": bert_layout.masked_lm("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
        "sequence-classification": _CLASSIFIER,
        "token-classification": bert_layout.CLASSIFIER,
        "question-answering": bert_layout.ANSWER,
        "multiple-choice": _CLASSIFIER,
    },
    tied={"vocab_projector.weight": bert_layout.WORDS},
    ignored=bert_layout.POSITION_IDS,
)
