"""DeBERTa: Decoding-enhanced BERT with Disentangled Attention, He et al. 2020."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax

from transformer_zoo.nn import Inputs
from transformer_zoo.nn.disentangled import DisentangledBlock, DisentangledConfig, DisentangledEncoder
from transformer_zoo.published import Key, Published, bert_layout, deberta_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DisentangledConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.disentangled.DisentangledConfig`."""

    vocab_size: int = 50265
    talking_heads: bool = False  # the heads' scores and weights are mixed


_LARGE = {"width": 1024, "num_layers": 24, "num_heads": 16, "mlp_dim": 4096}
PRESETS = {
    name: (f"microsoft/{name}", Config(absolute_positions=False, **sizes))
    for name, sizes in {
        "deberta-base": {},
        "deberta-large": _LARGE,
        "deberta-xlarge": _LARGE | {"num_layers": 48},
    }.items()
}


class Block(DisentangledBlock):
    """BERT's block, with disentangled attention whose keys have no bias."""

    @property
    def attention_settings(self) -> dict[str, Any]:
        return {"key_bias": False, "talking_heads": self.config.talking_heads}


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
