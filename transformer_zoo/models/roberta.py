"""RoBERTa: A Robustly Optimized BERT Pretraining Approach, Liu et al. 2019; and the same network in other languages:
XLM-R, Conneau et al. 2020, and CamemBERT, Martin et al. 2020.

It is BERT (`bert.py`) without next-sentence prediction. Positions are numbered from pad_id + 1, as in fairseq, and a
classifier of sequences has its own hidden layer where BERT uses the pooler.
"""

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import jax

from transformer_zoo.nn import Architecture, Embedding, Encoder, Head, Inputs, PostNormBlock, TokenEmbedding
from transformer_zoo.published import Key, Published, bert_layout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes."""

    model_type: Literal["roberta", "xlm-roberta", "camembert"] = "roberta"  # the name under which it is published
    vocab_size: int = 50265
    max_length: int = 512  # the table of positions has pad_id + 1 more rows, which are never read
    num_segments: int = 1
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    head_dropout: float | None = None  # None: as hidden_dropout
    pad_id: int = 1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    @property
    def first_position(self) -> int:
        """The row of the table that holds position 0."""
        return self.pad_id + 1


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
_XLM = {"model_type": "xlm-roberta", "vocab_size": 250002}
PRESETS = {
    "roberta-base": ("FacebookAI/roberta-base", Config()),
    "roberta-large": ("FacebookAI/roberta-large", Config(**_LARGE)),
    "distilroberta-base": ("distilbert/distilroberta-base", Config(num_layers=6)),
    "codebert-base": ("microsoft/codebert-base", Config()),
    "xlm-roberta-base": ("FacebookAI/xlm-roberta-base", Config(**_XLM)),
    "xlm-roberta-large": ("FacebookAI/xlm-roberta-large", Config(**_XLM, **_LARGE)),
    "camembert-base": ("almanach/camembert-base", Config(model_type="camembert", vocab_size=32005)),
}


class Model(Encoder):
    """RoBERTa with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        embedding = functools.partial(Embedding, width=cfg.width, compute=compute, init=init)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed = embedding(cfg.first_position + cfg.max_length)
        self.segment_embed = embedding(cfg.num_segments)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.blocks = PostNormBlock(cfg, compute, init)

        rate = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
        self.add_head(init, norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary="gelu"),
            "sequence-classification": Head(hidden="tanh", hidden_dropout=rate, dropout=rate),
            "token-classification": Head(dropout=rate),
            "question-answering": Head(),
            "multiple-choice": Head(pooled=True, dropout=cfg.hidden_dropout),
        })  # fmt: skip

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTD = self.token_embed(inputs.tokens_BT) + self.segment_embed(inputs.segments_BT)
        x_BTD += self.position_embed(inputs.positions_BT + self.config.first_position)
        return self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        return self.run(self.blocks, x_BTD, None, inputs.mask, None, train)


PUBLISHED = Published(
    model_type="roberta",
    class_prefix="Roberta",
    aliases={"xlm-roberta": "XLMRoberta", "camembert": "Camembert"},
    config=bert_layout.CONFIG | {
        "model_type": Key("model_type", "roberta"),
        "max_length": Key(
            "max_position_embeddings",
            read=lambda rows, settings: rows - settings["pad_token_id"] - 1,
            write=lambda length, config: length + config.first_position,
        ),
        "pad_id": Key("pad_token_id", 1),
    },
    fixed=bert_layout.FIXED,
    prefix="roberta.",
    body=(*bert_layout.EMBEDDINGS, *bert_layout.LAYERS, *bert_layout.POOLER),
    heads={
        "masked-lm": bert_layout.LM_HEAD,
        **bert_layout.CLASSIFIERS,
        "sequence-classification": bert_layout.HIDDEN_CLASSIFIER,
    },
    tied=bert_layout.TIED_LM_HEAD,
    ignored=bert_layout.BUFFERS,
)  # fmt: skip
