"""OPT: Open Pre-trained Transformer Language Models, Zhang et al. 2022."""

import dataclasses
from typing import Any

import jax

from transformer_zoo.nn import Architecture
from transformer_zoo.nn.gpt_decoder import GptBlock, GptDecoder, init_cache
from transformer_zoo.published import Key, Published, first_id, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture, by default of the size 125M: what a checkpoint fixes."""

    vocab_size: int = 50272
    max_length: int = 2048
    width: int = 768
    embed_width: int | None = None  # of the embeddings, which are projected to the width. None: as width
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    activation: str = "relu"
    norm_first: bool = True  # and after the last layer; otherwise sums are normalised, and there is no further norm
    use_bias: bool = True  # of the layers of attention and MLP
    norm_affine: bool = True  # norms have a scale and a bias
    init_std: float = 0.02
    residual_dropout: float = 0.1
    attention_dropout: float = 0.0
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = 2
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    # Not annotated, and so no fields: the same for all models.
    norm_epsilon = 1e-5
    embed_dropout = 0.0


def _sized(width: int, num_layers: int, num_heads: int, **settings: Any) -> Config:
    return Config(width=width, num_layers=num_layers, num_heads=num_heads, mlp_dim=4 * width, **settings)


PRESETS = {
    "opt-125m": ("facebook/opt-125m", Config()),
    "opt-350m": ("facebook/opt-350m", _sized(1024, 24, 16, embed_width=512, norm_first=False)),
    "opt-1.3b": ("facebook/opt-1.3b", _sized(2048, 24, 32)),
    "opt-2.7b": ("facebook/opt-2.7b", _sized(2560, 32, 32)),
    "opt-6.7b": ("facebook/opt-6.7b", _sized(4096, 32, 32)),
    "opt-13b": ("facebook/opt-13b", _sized(5120, 40, 40)),
    "opt-30b": ("facebook/opt-30b", _sized(7168, 48, 56)),
    "opt-66b": ("facebook/opt-66b", _sized(9216, 64, 72)),
    "opt-175b": ("", _sized(12288, 96, 96)),
}


class Block(GptBlock):
    """With norms first or last, and with or without biases."""

    @property
    def norm(self) -> Any:
        affine = self.config.norm_affine
        return lambda **settings: super(Block, self).norm(use_scale=affine, use_bias=affine, **settings)

    @property
    def norm_last(self) -> bool:
        return not self.config.norm_first

    @property
    def use_bias(self) -> bool:
        return self.config.use_bias

    def attention_settings(self) -> dict[str, Any]:
        return {"use_bias": self.use_bias}


class Model(GptDecoder):
    """OPT with the head of a task."""

    block: Any = Block

    OFFSET = 2

    def add_embeddings(self, init: Any) -> None:
        super().add_embeddings(init)
        self.embed_project = self.compute.dense(self.config.width, use_bias=False, kernel_init=init)
        self.hidden_project = self.compute.dense(self.embed_width, use_bias=False, kernel_init=init)

    @property
    def embed_width(self) -> int:
        return self.config.embed_width or self.config.width

    @property
    def projects(self) -> bool:
        """Whether embeddings and hidden states have different widths."""
        return self.embed_width != self.config.width

    def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
        x_BTE = self.token_embed(tokens_BT)
        return self.embed_project(x_BTE) if self.projects else x_BTE

    def final(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = self.final_norm(x_BTD) if self.config.norm_first else x_BTD
        return self.hidden_project(x_BTD) if self.projects else x_BTD


_LAYER = "decoder.layers.*"
PUBLISHED = Published(
    model_type="opt",
    class_prefix="OPT",
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("max_position_embeddings"),
        "width": Key("hidden_size"),
        "embed_width": Key(
            "word_embed_proj_dim", None,
            read=lambda width, settings: None if width == settings["hidden_size"] else width,
            write=lambda width, config: width or config.width,
        ),
        "num_layers": Key("num_hidden_layers"),
        "num_heads": Key("num_attention_heads"),
        "mlp_dim": Key("ffn_dim"),
        "activation": Key("activation_function", "relu"),
        "norm_first": Key("do_layer_norm_before", True),
        "use_bias": Key("enable_bias", True),
        "norm_affine": Key("layer_norm_elementwise_affine", True),
        "init_std": Key("init_std", 0.02),
        "residual_dropout": Key("dropout", 0.1),
        "attention_dropout": Key("attention_dropout", 0.0),
        "tied": Key("tie_word_embeddings", True),
        "eos_id": Key("eos_token_id", 2, first_id),
        "problem": Key("problem_type", None),
    },
    fixed={"_remove_final_layer_norm": False, "layerdrop": 0.0},
    prefix="model.",
    body=(
        *rows.embedding("decoder.embed_tokens", "token_embed", "V"),
        *rows.embedding("decoder.embed_positions", "position_embed"),
        *rows.dense("decoder.project_in", "embed_project"),
        *rows.norm(f"{_LAYER}.self_attn_layer_norm", "blocks/attention_norm"),
        *rows.attention(
            f"{_LAYER}.self_attn", "blocks/attention", "q_proj k_proj v_proj", f"{_LAYER}.self_attn.out_proj"
        ),
        *rows.norm(f"{_LAYER}.final_layer_norm", "blocks/mlp_norm"),
        *rows.dense(f"{_LAYER}.fc1", "blocks/mlp_up"),
        *rows.dense(f"{_LAYER}.fc2", "blocks/mlp_down"),
        *rows.norm("decoder.final_layer_norm", "final_norm"),
        *rows.dense("decoder.project_out", "hidden_project"),
    ),
    heads=rows.HEADS | rows.ANSWERS,
    tied={"lm_head.weight": "decoder.embed_tokens.weight"},
)  # fmt: skip
