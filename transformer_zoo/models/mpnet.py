"""MPNet: Masked and Permuted Pre-training for Language Understanding, Song et al. 2020.

It is RoBERTa (`roberta.py`) without segments, and with a bias of the attention scores by distance, as T5 has it, which
all layers share.
"""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax

from transformer_zoo.nn import Head, Inputs, PostNormBlock, PostNormConfig, PostNormEncoder
from transformer_zoo.nn.positions import distances
from transformer_zoo.nn.relative_bias import RelativeBias
from transformer_zoo.published import Key, Published, bert_layout, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(PostNormConfig):
    """The architecture: what a checkpoint fixes. The other fields are BERT's: `nn.PostNormConfig`."""

    vocab_size: int = 30527
    norm_epsilon: float = 1e-5
    # The same in every checkpoint; the reference reads no others.
    pad_id: ClassVar[int] = 1
    num_buckets: ClassVar[int] = 32
    max_distance: ClassVar[int] = 128

    @property
    def first_position(self) -> int:
        """The row of the table of positions that holds position 0. The rows before are never read."""
        return self.pad_id + 1


PRESETS = {
    "mpnet-base": ("microsoft/mpnet-base", Config()),
    "all-mpnet-base-v2": ("sentence-transformers/all-mpnet-base-v2", Config()),
}


class Model(PostNormEncoder):
    """MPNet with the head of a task."""

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        self.add_embeddings(cfg.width, init)
        self.relative_bias = RelativeBias(cfg.num_buckets, cfg.num_heads, cfg.max_distance, compute, init)
        self.blocks = PostNormBlock(cfg, compute, init)

        rate = cfg.hidden_dropout
        self.add_head(init, self.norm, {
            "base": Head(pooled=True),
            "masked-lm": Head(vocabulary="gelu"),
            "sequence-classification": Head(hidden="tanh", hidden_dropout=rate, dropout=rate),
            "token-classification": Head(dropout=rate),
            "question-answering": Head(),
            "multiple-choice": Head(pooled=True, dropout=rate),
        })  # fmt: skip

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        bias_BHTT = self.relative_bias(distances(x_BTD.shape[1]))
        return self.run(self.blocks, x_BTD, None, inputs.mask, bias_BHTT, train)


_LAYER = bert_layout.LAYER
_CONFIG = bert_layout.CONFIG | {
    "max_length": Key(
        "max_position_embeddings",
        read=lambda rows, settings: rows - Config.pad_id - 1,
        write=lambda length, config: length + config.first_position,
    )
}
PUBLISHED = Published(
    model_type="mpnet",
    class_prefix="MPNet",
    config={field: key for field, key in _CONFIG.items() if field not in ("num_segments", "head_dropout")},
    fixed=bert_layout.TIED_WORDS | {
        "relative_attention_num_buckets": Config.num_buckets, "pad_token_id": Config.pad_id,
    },
    prefix="mpnet.",
    body=(
        *bert_layout.EMBEDDINGS,
        *rows.embedding("encoder.relative_attention_bias", "relative_bias"),
        *rows.attention(_LAYER + "attention.attn", "blocks/attention", "q k v", _LAYER + "attention.attn.o"),
        *rows.norm(_LAYER + "attention.LayerNorm", "blocks/attention_norm"),
        *bert_layout.MLP,
        *bert_layout.POOLER,
    ),
    heads=bert_layout.LM_HEADS,
    tied=bert_layout.TIED_LM_HEAD,
    ignored=bert_layout.POSITION_IDS,
)  # fmt: skip
