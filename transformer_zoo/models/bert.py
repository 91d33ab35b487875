"""BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding, Devlin et al. 2018."""

import dataclasses

import flax.linen as nn

from transformer_zoo.nn import Head, PostNormBlock, PostNormConfig, PostNormEncoder
from transformer_zoo.published import Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PostNormConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.PostNormConfig`."""

    num_segments: int = 2
    head_dropout: float | None = None  # None: as hidden_dropout


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    "bert-base-uncased": ("google-bert/bert-base-uncased", Config()),
    "bert-large-uncased": ("google-bert/bert-large-uncased", Config(**_LARGE)),
    "bert-base-cased": ("google-bert/bert-base-cased", Config(vocab_size=28996)),
    "bert-large-cased": ("google-bert/bert-large-cased", Config(vocab_size=28996, **_LARGE)),
    "bert-base-multilingual-cased": ("google-bert/bert-base-multilingual-cased", Config(vocab_size=119547)),
    "bert-base-multilingual-uncased": ("google-bert/bert-base-multilingual-uncased", Config(vocab_size=105879)),
}


class Model(PostNormEncoder):
    """BERT with the head of a task."""

    def setup(self) -> None:
        cfg = self.config
        init = nn.initializers.truncated_normal(cfg.init_std)  # cut at two standard deviations, as in the paper's code
        self.add_embeddings(cfg.width, init)
        self.blocks = PostNormBlock(cfg, self.compute, init)

        rate = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
        self.add_head(init, self.norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary=cfg.activation),
            "next-sentence": Head(pooled=True),
            "pretraining": Head(pooled=True, vocabulary=cfg.activation),
            "sequence-classification": Head(pooled=True, dropout=rate),
            "token-classification": Head(dropout=rate),
            "question-answering": Head(),
            "multiple-choice": Head(pooled=True, dropout=rate),
        })  # fmt: skip


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
