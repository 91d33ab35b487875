"""ALBERT: A Lite BERT for Self-supervised Learning of Language Representations, Lan et al. 2019.

It is BERT (`bert.py`) with embeddings of their own width and layers that share parameters.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from transformer_zoo.nn import Architecture, Attention, Compute, Embedding, Encoder, Head, Inputs, Mask, TokenEmbedding
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.published import Key, Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: as `Architecture`, and more groups than layers.
    """

    vocab_size: int = 30000
    max_length: int = 512
    num_segments: int = 2
    embed_width: int = 128
    width: int = 768
    num_layers: int = 12
    num_groups: int = 1  # consecutive layers that share their parameters are a group
    layer_blocks: int = 1  # blocks in a layer, each with its own parameters
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-12
    init_std: float = 0.02
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    head_dropout: float = 0.1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

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


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)), as in BERT; with dropout after the first only."""

    config: Config
    compute: Compute
    init: Any

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, compute, init = self.config, self.compute, self.init
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        dense = functools.partial(compute.dense, kernel_init=init)
        drop = nn.Dropout(cfg.hidden_dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention",
        )  # fmt: skip

        y_BTD = attention(x_BTD, attention.keys_values(x_BTD), mask=mask, train=train)
        x_BTD = norm(name="attention_norm")(x_BTD + drop(y_BTD))
        h_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_up")(x_BTD))
        return norm(name="mlp_norm")(x_BTD + dense(cfg.width, name="mlp_down")(h_BTF)), None


class Model(Encoder):
    """ALBERT with the head of a task."""

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        init = nn.initializers.truncated_normal(cfg.init_std)  # cut at two standard deviations, as in the paper's code
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        embedding = functools.partial(Embedding, width=cfg.embed_width, compute=compute, init=init)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.embed_width, compute, init)
        self.position_embed, self.segment_embed = embedding(cfg.max_length), embedding(cfg.num_segments)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        self.embed_project = compute.dense(cfg.width, kernel_init=init)
        self.blocks = Block(cfg, compute, init)

        classifier = Head(pooled=True, dropout=cfg.head_dropout)
        self.add_head(init, norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary=cfg.activation),
            "pretraining": Head(pooled=True, vocabulary=cfg.activation, dropout=cfg.head_dropout),
            "sequence-classification": classifier,
            "token-classification": Head(dropout=cfg.head_dropout),
            "question-answering": Head(),
            "multiple-choice": classifier,
        })  # fmt: skip

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTE = self.token_embed(inputs.tokens_BT) + self.segment_embed(inputs.segments_BT)
        x_BTE += self.position_embed(inputs.positions_BT)
        return self.embed_project(self.embed_drop(self.embed_norm(x_BTE), deterministic=not train))

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        index = parameter_index(self.config)
        return self.run(self.blocks, x_BTD, None, inputs.mask, train, length=len(index), places=index)


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
