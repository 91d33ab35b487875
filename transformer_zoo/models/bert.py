"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, Devlin et al. 2018."""

import dataclasses
import functools

import flax.linen as nn
import jax

from transformer_zoo.nn import Architecture, Embedding, Encoder, Head, Inputs, PostNormBlock, TokenEmbedding
from transformer_zoo.published import Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes."""

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
    problem: str | None = None  # problem_type in config.json


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    "bert-base-uncased": ("google-bert/bert-base-uncased", Config()),
    "bert-large-uncased": ("google-bert/bert-large-uncased", Config(**_LARGE)),
    "bert-base-cased": ("google-bert/bert-base-cased", Config(vocab_size=28996)),
    "bert-large-cased": ("google-bert/bert-large-cased", Config(vocab_size=28996, **_LARGE)),
    "bert-base-multilingual-cased": ("google-bert/bert-base-multilingual-cased", Config(vocab_size=119547)),
    "bert-base-multilingual-uncased": ("google-bert/bert-base-multilingual-uncased", Config(vocab_size=105879)),
}


class Model(Encoder):
    """BERT with the head of a task."""

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        init = nn.initializers.truncated_normal(cfg.init_std)  # cut at two standard deviations, as in the paper's code
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        embedding = functools.partial(Embedding, width=cfg.width, compute=compute, init=init)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed, self.segment_embed = embedding(cfg.max_length), embedding(cfg.num_segments)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.blocks = PostNormBlock(cfg, compute, init)

        rate = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
        self.add_head(init, norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary=cfg.activation),
            "next-sentence": Head(pooled=True),
            "pretraining": Head(pooled=True, vocabulary=cfg.activation),
            "sequence-classification": Head(pooled=True, dropout=rate),
            "token-classification": Head(dropout=rate),
            "question-answering": Head(),
            "multiple-choice": Head(pooled=True, dropout=rate),
        })  # fmt: skip

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTD = self.token_embed(inputs.tokens_BT) + self.segment_embed(inputs.segments_BT)
        x_BTD += self.position_embed(inputs.positions_BT)
        return self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        return self.run(self.blocks, x_BTD, None, inputs.mask, None, train)


_NEXT_SENTENCE = rows.dense("cls.seq_relationship", "head/scores")
PUBLISHED = Published(
    model_type="bert",
    class_prefix="Bert",
    config=bert_layout.CONFIG,
    fixed=bert_layout.FIXED,
    prefix="bert.",
    body=(*bert_layout.EMBEDDINGS, *bert_layout.LAYERS, *bert_layout.POOLER),
    heads={
        "masked-lm": bert_layout.MASKED_LM,
        "next-sentence": _NEXT_SENTENCE,
        "pretraining": (*bert_layout.MASKED_LM, *_NEXT_SENTENCE),
        **bert_layout.CLASSIFIERS,
    },
    tied=bert_layout.TIED_MASKED_LM,
    ignored=bert_layout.POSITION_IDS,
)
