"""ALBERT: A Lite BERT for Self-supervised Learning of Language Representations, Lan et al. 2019.

It is BERT (`bert.py`) with embeddings of their own width and layers that share parameters.
"""

import dataclasses

import flax.linen as nn
import jax
import numpy as np

from transformer_zoo.nn import Head, Inputs, PostNormBlock, PostNormConfig, PostNormEncoder
from transformer_zoo.published import Key, Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PostNormConfig):
    """The architecture: what a checkpoint fixes. The other fields are BERT's: `nn.PostNormConfig`.

    Raises:
        ValueError: as `Architecture`, and more groups than layers.
    """

    vocab_size: int = 30000
    activation: str = "gelu_new"
    num_segments: int = 2
    embed_width: int = 128
    num_groups: int = 1  # consecutive layers that share their parameters are a group
    layer_blocks: int = 1  # blocks in a layer, each with its own parameters
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    head_dropout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_groups > self.num_layers:
            raise ValueError(f"num_groups={self.num_groups} is more than num_layers={self.num_layers}")


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


class Model(PostNormEncoder):
    """ALBERT with the head of a task. Its block is BERT's, with dropout after attention only."""

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        init = nn.initializers.truncated_normal(cfg.init_std)  # cut at two standard deviations, as in the paper's code
        self.add_embeddings(cfg.embed_width, init)
        self.embed_project = compute.dense(cfg.width, kernel_init=init)
        self.blocks = PostNormBlock(cfg, compute, init, dropout_after=("attention",))

        classifier = Head(pooled=True, dropout=cfg.head_dropout)
        self.add_head(init, self.norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary=cfg.activation),
            "pretraining": Head(pooled=True, vocabulary=cfg.activation, dropout=cfg.head_dropout),
            "sequence-classification": classifier,
            "token-classification": Head(dropout=cfg.head_dropout),
            "question-answering": Head(),
            "multiple-choice": classifier,
        })  # fmt: skip

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        return self.embed_project(super().embed(inputs, train))

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        index = parameter_index(self.config)
        return self.run(self.blocks, x_BTD, None, inputs.mask, None, train, length=len(index), places=index)


def parameter_index(cfg: Config) -> np.ndarray:
    """int[num_layers * layer_blocks, 2]: the group, and the block of a layer, whose parameters each block uses.

    Where num_groups does not divide num_layers, the first groups are larger.
    """
    groups = [int(layer / (cfg.num_layers / cfg.num_groups)) for layer in range(cfg.num_layers)]
    return np.array([(group, block) for group in groups for block in range(cfg.layer_blocks)])


_LAYER = "encoder.albert_layer_groups.*.albert_layers.*."
_MASKED_LM = bert_layout.masked_lm("predictions.dense", "predictions.LayerNorm", "predictions.bias")
PUBLISHED = Published(
    model_type="albert",
    class_prefix="Albert",
    config=bert_layout.CONFIG | {
        "max_length": Key("max_position_embeddings", 512),
        "embed_width": Key("embedding_size", 128),
        "num_groups": Key("num_hidden_groups", 1),
        "layer_blocks": Key("inner_group_num", 1),
        "activation": Key("hidden_act", "gelu_new"),
        "hidden_dropout": Key("hidden_dropout_prob", 0),
        "attention_dropout": Key("attention_probs_dropout_prob", 0),
        "head_dropout": Key("classifier_dropout_prob", 0.1),
    },
    fixed={"position_embedding_type": "absolute", "is_decoder": False, **bert_layout.TIED_WORDS},
    prefix="albert.",
    body=(
        *bert_layout.EMBEDDINGS,
        *rows.dense("encoder.embedding_hidden_mapping_in", "embed_project"),
        *rows.attention(_LAYER + "attention", "blocks/attention", "query key value", _LAYER + "attention.dense"),
        *rows.norm(_LAYER + "attention.LayerNorm", "blocks/attention_norm"),
        *rows.dense(_LAYER + "ffn", "blocks/mlp_up"),
        *rows.dense(_LAYER + "ffn_output", "blocks/mlp_down"),
        *rows.norm(_LAYER + "full_layer_layer_norm", "blocks/mlp_norm"),
        *rows.dense("pooler", "pooler/dense"),
    ),
    heads={
        "masked-lm": _MASKED_LM,
        "pretraining": (*_MASKED_LM, *rows.dense("sop_classifier.classifier", "head/scores")),
        **bert_layout.CLASSIFIERS,
    },
    tied={"predictions.decoder.weight": bert_layout.WORDS, "predictions.decoder.bias": "/predictions.bias"},
    ignored=bert_layout.POSITION_IDS,
)  # fmt: skip
