"""ELECTRA: Pre-training Text Encoders as Discriminators Rather Than Generators, Clark et al. 2020.

It is BERT (`bert.py`) with embeddings of their own width and without a pooler. Generator and discriminator are the same
network, for the tasks "masked-lm" and "replaced-token-detection".
"""

import dataclasses

import flax.linen as nn
import jax

from transformer_zoo.nn import Head, Inputs, PostNormBlock, PostNormConfig, PostNormEncoder
from transformer_zoo.published import Key, Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PostNormConfig):
    """The architecture: what a checkpoint fixes, of a generator or of a discriminator. The other fields are BERT's:
    `nn.PostNormConfig`."""

    num_segments: int = 2
    embed_width: int = 128
    width: int = 256
    num_heads: int = 4
    mlp_dim: int = 1024
    head_dropout: float | None = None  # None: as hidden_dropout
    choice_dropout: float = 0.1  # of the head of multiple-choice


_BASE = {"embed_width": 768, "width": 768, "num_heads": 12, "mlp_dim": 3072}
_LARGE = {"embed_width": 1024, "width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    "electra-small-discriminator": ("google/electra-small-discriminator", Config()),
    "electra-small-generator": ("google/electra-small-generator", Config()),
    "electra-base-discriminator": ("google/electra-base-discriminator", Config(**_BASE)),
    "electra-base-generator": ("google/electra-base-generator", Config(embed_width=768)),
    "electra-large-discriminator": ("google/electra-large-discriminator", Config(**_LARGE)),
    "electra-large-generator": ("google/electra-large-generator", Config(embed_width=1024, num_layers=24)),
}


class Model(PostNormEncoder):
    """ELECTRA with the head of a task.

    A generator and a discriminator that are trained together share token_embed, position_embed, segment_embed and
    embed_norm (section 3.2), so both have the same embed_width; each projects the embeddings to its own width.
    """

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        init = nn.initializers.truncated_normal(cfg.init_std)  # cut at two standard deviations, as in the paper's code
        self.add_embeddings(cfg.embed_width, init)
        if cfg.embed_width != cfg.width:
            self.embed_project = compute.dense(cfg.width, kernel_init=init)
        self.blocks = PostNormBlock(cfg, compute, init)

        rate = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
        self.add_head(init, self.norm, {
            "base": Head(),
            "masked-lm": Head(vocabulary="gelu"),
            "replaced-token-detection": Head(hidden=cfg.activation),
            "sequence-classification": Head(hidden="gelu", hidden_dropout=rate, dropout=rate),
            "token-classification": Head(dropout=rate),
            "question-answering": Head(),
            "multiple-choice": Head(hidden="gelu", dropout=cfg.choice_dropout),
        })  # fmt: skip

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTE = super().embed(inputs, train)
        return x_BTE if self.config.embed_width == self.config.width else self.embed_project(x_BTE)


PUBLISHED = Published(
    model_type="electra",
    class_prefix="Electra",
    config=bert_layout.CONFIG | {
        "embed_width": Key("embedding_size"),
        "choice_dropout": Key("summary_last_dropout", 0.1),
    },
    fixed=bert_layout.FIXED | {"summary_type": "first", "summary_use_proj": True, "summary_activation": "gelu"},
    prefix="electra.",
    body=(*bert_layout.EMBEDDINGS, *rows.dense("embeddings_project", "embed_project"), *bert_layout.LAYERS),
    heads={
        "masked-lm": bert_layout.masked_lm(
            "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"
        ),
        "replaced-token-detection": (
            *rows.dense("discriminator_predictions.dense", "head/dense"),
            *rows.dense("discriminator_predictions.dense_prediction", "head/scores"),
        ),
        **bert_layout.CLASSIFIERS,
        "sequence-classification": bert_layout.HIDDEN_CLASSIFIER,
        "multiple-choice": (*rows.dense("sequence_summary.summary", "head/dense"), *bert_layout.CLASSIFIER),
    },
    tied={"generator_lm_head.weight": bert_layout.WORDS},
    ignored=bert_layout.BUFFERS,
)  # fmt: skip
