"""BLOOM: A 176B-Parameter Open-Access Multilingual Language Model, BigScience Workshop 2022."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.nn import Architecture, Mask, alibi
from transformer_zoo.nn.gpt_decoder import GptBlock, GptDecoder, init_cache
from transformer_zoo.published import Key, Published, first_id, gguf, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture, by default of the size 560M: what a checkpoint fixes."""

    vocab_size: int = 250880
    width: int = 1024
    num_layers: int = 24
    num_heads: int = 16
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    residual_dropout: float = 0.0
    attention_dropout: float = 0.0
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = 2
    head_dropout: float = 0.0  # of token classification
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    # Not annotated, and so no fields: attention knows distances, and there is no greatest length; the MLP is four times
    # as wide as the model.
    max_length = None
    mlp_dim = None


PRESETS = {
    "bloom-560m": ("bigscience/bloom-560m", Config()),
    "bloom-1b1": ("bigscience/bloom-1b1", Config(width=1536)),
    "bloom-1b7": ("bigscience/bloom-1b7", Config(width=2048)),
    "bloom-3b": ("bigscience/bloom-3b", Config(width=2560, num_layers=30, num_heads=32)),
    "bloom-7b1": ("bigscience/bloom-7b1", Config(width=4096, num_layers=30, num_heads=32)),
    "bloom": ("bigscience/bloom", Config(width=14336, num_layers=70, num_heads=112)),
}


class Block(GptBlock):
    """With ALiBi (section 3.2)."""

    def scores(self, mask: Mask, own: None, *shared: jax.Array) -> dict[str, Any]:
        (positions_BT,) = shared
        ahead_BTS = mask.ahead_BTS  # of a cache, whose keys have no positions here
        if ahead_BTS is None:
            ahead_BTS = positions_BT[:, None, :] - positions_BT[:, :, None]
        return {"mask": mask, "bias": alibi.bias(ahead_BTS, self.config.num_heads, self.compute.accumulation_dtype)}

    def activate(self, h_BTF: jax.Array) -> jax.Array:
        """The tanh approximation of GELU, with sqrt(2/pi) to eight digits as in training."""
        return 0.5 * h_BTF * (1.0 + jnp.tanh(0.79788456 * h_BTF * (1.0 + 0.044715 * h_BTF * h_BTF)))


class Model(GptDecoder):
    """BLOOM with the head of a task."""

    block: Any = Block

    counts_positions = True

    def add_embeddings(self, init: Any) -> None:
        self.embed_norm = self.blocks.norm()

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        return self.embed_norm(self.token_embed(tokens_BT))

    def shared(self, positions_BT: jax.Array) -> tuple[jax.Array]:
        return (positions_BT,)


PUBLISHED = Published(
    model_type="bloom",
    class_prefix="Bloom",
    gguf=gguf.Gguf(
        architecture="bloom",
        names={
            "token_embd": "transformer.word_embeddings", "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f", "output": "lm_head",
            "blk.*.attn_norm": "transformer.h.*.input_layernorm",
            "blk.*.ffn_norm": "transformer.h.*.post_attention_layernorm",
            "blk.*.attn_output": "transformer.h.*.self_attention.dense",
            "blk.*.ffn_up": "transformer.h.*.mlp.dense_h_to_4h", "blk.*.ffn_down": "transformer.h.*.mlp.dense_4h_to_h",
        },
        rows=gguf.qkv("transformer.h.*.self_attention.query_key_value"),
        keys={
            "block_count": "n_layer", "attention.head_count": "n_head", "context_length": None,
            "feed_forward_length": None, "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        # Any length and no other width of the MLP: llama.cpp wants both numbers.
        defaults={
            "context_length": lambda settings: 2048,
            "feed_forward_length": lambda settings: 4 * settings["hidden_size"],
        },
    ),
    config={
        "vocab_size": Key("vocab_size"),
        "width": Key("hidden_size", aliases=("n_embed",)),
        "num_layers": Key("n_layer", aliases=("num_hidden_layers",)),
        "num_heads": Key("n_head", aliases=("num_attention_heads",)),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "init_std": Key("initializer_range", 0.02),
        "residual_dropout": Key("hidden_dropout", 0.0),
        "attention_dropout": Key("attention_dropout", 0.0),
        "tied": Key("tie_word_embeddings", True),
        "eos_id": Key("eos_token_id", 2, first_id),
        "head_dropout": Key(
            "classifier_dropout", None,
            read=lambda rate, settings: settings["hidden_dropout"] if rate is None else rate,
        ),
        "problem": Key("problem_type", None),
    },
    fixed={"apply_residual_connection_post_layernorm": False},
    prefix="transformer.",
    body=(
        *rows.embedding("word_embeddings", "token_embed", "V"),
        *rows.norm("word_embeddings_layernorm", "embed_norm"),
        *rows.norm("h.*.input_layernorm", "blocks/attention_norm"),
        (
            "h.*.self_attention.query_key_value.weight", "blocks/attention/{query,key,value}/kernel",
            "(H n K) D -> n D H K",
        ),
        ("h.*.self_attention.query_key_value.bias", "blocks/attention/{query,key,value}/bias", "(H n K) -> n H K"),
        *rows.merge_heads("h.*.self_attention.dense", "blocks/attention/out"),
        *rows.norm("h.*.post_attention_layernorm", "blocks/mlp_norm"),
        *rows.dense("h.*.mlp.dense_h_to_4h", "blocks/mlp_up"),
        *rows.dense("h.*.mlp.dense_4h_to_h", "blocks/mlp_down"),
        *rows.norm("ln_f", "final_norm"),
    ),
    heads=rows.HEADS | rows.ANSWERS | {"token-classification": rows.dense("classifier", "head/scores")},
    tied={"lm_head.weight": "word_embeddings.weight"},
)  # fmt: skip
