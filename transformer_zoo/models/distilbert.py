"""DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter, Sanh et al. 2019.

It is BERT (`bert.py`) without segments and without a pooler. The paper's model begins as every second layer of BERT.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import EncoderConfig, Head, PostNormBlock, PostNormEncoder
from transformer_zoo.published import Key, Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The architecture: what a checkpoint fixes. The other fields are BERT's: `nn.EncoderConfig`."""

    num_layers: int = 6
    sinusoidal: bool = False  # whether a fresh table of positions holds sinusoids; otherwise random numbers
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float = 0.2  # of sequence-classification and multiple-choice
    answer_dropout: float = 0.1
    norm_epsilon: ClassVar[float] = 1e-12  # config.json has no key for it


PRESETS = {
    "distilbert-base-uncased": ("distilbert/distilbert-base-uncased", Config()),
    "distilbert-base-cased": ("distilbert/distilbert-base-cased", Config(vocab_size=28996)),
    "distilbert-base-multilingual-cased": ("distilbert/distilbert-base-multilingual-cased", Config(vocab_size=119547)),
    "distilbert-base-uncased-finetuned-sst-2-english": (
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        Config(labels=("NEGATIVE", "POSITIVE")),
    ),
}


class Model(PostNormEncoder):
    """DistilBERT with the head of a task. Its block is BERT's, with dropout after the MLP only."""

    def setup(self) -> None:
        cfg, init = self.config, nn.initializers.normal(self.config.init_std)
        self.add_embeddings(cfg.width, init, position_init=sinusoids if cfg.sinusoidal else None)
        self.blocks = PostNormBlock(cfg, self.compute, init, dropout_after=("mlp",))

        classifier = Head(hidden="relu", dropout=cfg.head_dropout)
        self.add_head(init, self.norm, {
            "base": Head(),
            "masked-lm": Head(vocabulary=cfg.activation),
            "sequence-classification": classifier,
            "token-classification": Head(dropout=cfg.hidden_dropout),
            "question-answering": Head(dropout=cfg.answer_dropout),
            "multiple-choice": classifier,
        })  # fmt: skip


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
