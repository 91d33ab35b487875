"""GPT: Improving Language Understanding by Generative Pre-Training, Radford et al. 2018."""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax

from transformer_zoo.nn import Architecture
from transformer_zoo.nn.gpt_decoder import GptBlock, GptDecoder, init_cache
from transformer_zoo.published import Key, Published, first_id, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes."""

    vocab_size: int = 40478
    max_length: int = 512
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    activation: Literal["gelu_new", "relu", "silu", "swish"] = "gelu_new"
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    embed_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = None  # its vocabulary has no end of text
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    mlp_dim = None  # not annotated, and so no field: four times the width


PRESETS = {"openai-gpt": ("openai-community/openai-gpt", Config())}


class Block(GptBlock):
    """With norms last, as in the Transformer, and all fresh weights alike (section 4.1)."""

    @property
    def norm_last(self) -> bool:
        return True

    @property
    def residual_init(self) -> Any:
        return nn.initializers.normal(self.config.init_std)


class Model(GptDecoder):
    """GPT with the head of a task."""

    block: Any = Block

    def final(self, x_BTD: jax.Array) -> jax.Array:
        return x_BTD  # the last block has normalised it


PUBLISHED = Published(
    model_type="openai-gpt",
    class_prefix="OpenAIGPT",
    classes={"causal-lm": "LMHeadModel"},
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("n_positions"),
        "width": Key("n_embd"),
        "num_layers": Key("n_layer"),
        "num_heads": Key("n_head"),
        "activation": Key.choice(
            "afn", {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"}, default="gelu"
        ),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "init_std": Key("initializer_range", 0.02),
        "embed_dropout": Key("embd_pdrop", 0.1),
        "attention_dropout": Key("attn_pdrop", 0.1),
        "residual_dropout": Key("resid_pdrop", 0.1),
        "tied": Key("tie_word_embeddings", True),
        "eos_id": Key("eos_token_id", None, first_id),
        "problem": Key("problem_type", None),
    },
    prefix="transformer.",
    body=(
        *rows.embedding("tokens_embed", "token_embed", "V"),
        *rows.embedding("positions_embed", "position_embed"),
        *rows.attention_conv1d("h.*.attn", "blocks/attention"),
        *rows.norm("h.*.ln_1", "blocks/attention_norm"),
        *rows.conv1d("h.*.mlp.c_fc", "blocks/mlp_up"),
        *rows.conv1d("h.*.mlp.c_proj", "blocks/mlp_down"),
        *rows.norm("h.*.ln_2", "blocks/mlp_norm"),
    ),
    heads=rows.HEADS,
    tied={"lm_head.weight": "tokens_embed.weight"},
    ignored=(
        (r"h\.\d+\.attn\.bias", "the causal mask, which old versions saved as a buffer"),
        ("position_ids", "the numbers of the positions, likewise"),
    ),
)
