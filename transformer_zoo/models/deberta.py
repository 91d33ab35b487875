"""DeBERTa: Decoding-enhanced BERT with Disentangled Attention, He et al. 2020."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax

from transformer_zoo.nn import Architecture, Inputs, Mask, PostNormBlock
from transformer_zoo.nn.disentangled import DisentangledAttention, DisentangledEncoder
from transformer_zoo.published import Key, Published, bert_layout, deberta_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes."""

    vocab_size: int = 50265
    max_length: int = 512
    num_segments: int = 0  # no published model has segments
    embed_width: int | None = None  # None: as width
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "gelu"
    norm_epsilon: float = 1e-7
    init_std: float = 0.02
    absolute_positions: bool = True  # added to the tokens; without them rows may be of any length
    relative_attention: bool = True
    position_terms: Literal["c2p|p2c", "c2p", "p2c", ""] = "c2p|p2c"  # of the attention scores
    max_distance: int | None = None  # distances are clipped to it. None: as max_length
    talking_heads: bool = False  # the heads' scores and weights are mixed
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    pooler_dropout: float = 0.0
    head_dropout: float | None = None  # None: as hidden_dropout
    pooler_activation: str = "gelu"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    name: (f"microsoft/{name}", Config(absolute_positions=False, **sizes))
    for name, sizes in {
        "deberta-base": {},
        "deberta-large": _LARGE,
        "deberta-xlarge": _LARGE | {"num_layers": 48},
    }.items()
}


class Block(PostNormBlock):
    """BERT's block, with disentangled attention."""

    def attend(self, x_BTD: jax.Array, mask: Mask, relative: Any, train: bool) -> jax.Array:
        cfg, init = self.config, self.init
        attention = DisentangledAttention(
            cfg.num_heads, cfg.width // cfg.num_heads, self.compute, dropout=cfg.attention_dropout,
            terms=cfg.position_terms, table_dropout=cfg.hidden_dropout, key_bias=False,
            talking_heads=cfg.talking_heads, init=init, out_init=init, name="attention",
        )  # fmt: skip
        return attention(x_BTD, attention.keys_values(x_BTD), relative, mask=mask, train=train)


class Model(DisentangledEncoder):
    """DeBERTa with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        self.add_embeddings(init, norm, num_distances=cfg.max_distance or cfg.max_length)
        self.blocks = Block(cfg, compute, init)
        self.add_head(init, norm, self.head_table)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        return self.run(self.blocks, x_BTD, None, inputs.mask, self.distance_table(), train)


_SELF = deberta_layout.SELF
PUBLISHED = Published(
    model_type="deberta",
    class_prefix="Deberta",
    config=deberta_layout.CONFIG | {"talking_heads": Key("talking_head", False)},
    fixed=bert_layout.TIED_WORDS,
    prefix="deberta.",
    body=(
        *deberta_layout.EMBEDDINGS,
        (_SELF + "in_proj.weight", "blocks/attention/{query,key,value}/kernel", "(H n K) D -> n D H K"),
        (_SELF + "q_bias", "blocks/attention/query/bias", "(H K) -> H K"),
        (_SELF + "v_bias", "blocks/attention/value/bias", "(H K) -> H K"),
        *rows.split_heads(_SELF + "pos_proj", "blocks/attention/position_key"),
        *rows.split_heads(_SELF + "pos_q_proj", "blocks/attention/position_query"),
        *rows.dense(_SELF + "head_logits_proj", "blocks/attention/mix_scores"),
        *rows.dense(_SELF + "head_weights_proj", "blocks/attention/mix_weights"),
        *deberta_layout.ATTENTION_OUTPUT,
        *bert_layout.MLP,
    ),
    heads={task: table for task, table in deberta_layout.HEADS.items() if task != "multiple-choice"},
    tied=deberta_layout.TIED,
    ignored=deberta_layout.IGNORED,
)
