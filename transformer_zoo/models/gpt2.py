"""GPT-2: Language Models are Unsupervised Multitask Learners, Radford et al. 2019."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Attention, Cache, Compute, Embedding, Mask, Output, Table, cache, stack
from transformer_zoo.nn.activations import ACTIVATIONS, check_activation
from transformer_zoo.nn.checks import check_heads, check_ids, check_rates, check_sizes, check_tokens
from transformer_zoo.nn.positions import place


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout.
    """

    vocab_size: int = 50257
    max_length: int = 1024
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_dim: int | None = None  # None: four times the width
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    init_std: float = 0.02
    embed_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    scale_attention: bool = True  # by 1/sqrt(K)
    scale_attention_by_layer: bool = (
        False  # by 1/layer besides, counted from 1 (Mistral's GPT-2, Karamcheti et al. 2021)
    )
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = 50256

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "width", "num_layers", "num_heads", "mlp_dim")
        check_heads(self.width, self.num_heads)
        check_rates(self, "embed_dropout", "attention_dropout", "residual_dropout")
        check_activation(self.activation)


PRESETS = {
    "gpt2": ("openai-community/gpt2", Config()),
    "gpt2-medium": ("openai-community/gpt2-medium", Config(width=1024, num_layers=24, num_heads=16)),
    "gpt2-large": ("openai-community/gpt2-large", Config(width=1280, num_layers=36, num_heads=20)),
    "gpt2-xl": ("openai-community/gpt2-xl", Config(width=1600, num_layers=48, num_heads=25)),
    "distilgpt2": ("distilbert/distilgpt2", Config(num_layers=6)),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the norms come first (section 2.3)."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, train: bool) -> tuple[jax.Array, Any]:
        cfg, compute, (kv, scale) = self.config, self.compute, layer
        norm = functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon)
        init, residual_init = initializers(cfg)
        drop = nn.Dropout(cfg.residual_dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, dropout=cfg.attention_dropout,
            init=init, out_init=residual_init, name="attention",
        )  # fmt: skip

        h_BTD = norm(name="attention_norm")(x_BTD)
        kv_now = cache.append(kv, attention.keys_values(h_BTD), start)
        x_BTD += drop(attention(h_BTD, cache.seen(kv_now), mask=mask, scale=scale, train=train))

        h_BTF = compute.dense(cfg.mlp_dim or 4 * cfg.width, kernel_init=init, name="mlp_up")(
            norm(name="mlp_norm")(x_BTD)
        )
        y_BTD = compute.dense(cfg.width, kernel_init=residual_init, name="mlp_down")(ACTIVATIONS[cfg.activation](h_BTF))
        return x_BTD + drop(y_BTD), None if kv is None else kv_now


class Model(nn.Module):
    """GPT-2, with a language model's output layer for the task `causal-lm` and without for `base`."""

    config: Config
    task: str = "causal-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        init, _ = initializers(cfg)
        self.token_embed = Embedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed = Table(cfg.max_length, cfg.width, compute, init)
        self.embed_drop = nn.Dropout(cfg.embed_dropout)
        self.blocks = Block(cfg, compute)
        self.final_norm = compute.layer_norm(epsilon=cfg.norm_epsilon)
        if self.task == "causal-lm" and not cfg.tied:
            self.head = Embedding(cfg.vocab_size, cfg.width, compute, init)

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Reads tokens from left to right.

        Args:
            tokens_BT: ids, int[B, T].
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: by default counted over the real tokens of the row or, in packed rows, of the document.
            documents_BT: numbers the documents packed in a row; attention does not cross them.
            cache: of the tokens before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ.
        """
        cfg = self.config
        check_tokens(tokens_BT, cfg.vocab_size, cfg.max_length)
        start = 0 if cache is None else cache.length
        positions_BT, mask, cache = place(tokens_BT, valid_BT, positions_BT, documents_BT, cache)
        check_ids(positions_BT, cfg.max_length, "positions_BT", "the positions")

        x_BTD = self.token_embed(tokens_BT) + self.position_embed(positions_BT)
        x_BTD = self.embed_drop(x_BTD, deterministic=not train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        layers = (None if cache is None else cache.kv, attention_scales(cfg))
        x_BTD, kv = stack(self.blocks, x_BTD, layers, mask, start, train, length=cfg.num_layers, compute=self.compute)
        hidden_BTD = self.final_norm(x_BTD)
        return Output(
            hidden_BTD=hidden_BTD,
            logits=self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "causal-lm" else None,
            cache=None if cache is None else cache.replace(kv=kv),
        )

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        return (self.token_embed if self.config.tied else self.head).attend(hidden_BTD)


def initializers(cfg: Config) -> tuple[Any, Any]:
    """For all weights, and for those that write to the residual stream: smaller by the root of their number (2.3)."""
    return nn.initializers.normal(cfg.init_std), nn.initializers.normal(cfg.init_std / (2 * cfg.num_layers) ** 0.5)


def attention_scales(cfg: Config) -> jax.Array:
    """What the scores of each layer are multiplied with, [L]."""
    scale = (cfg.width // cfg.num_heads) ** -0.5 if cfg.scale_attention else 1.0
    layer_L = np.arange(1, cfg.num_layers + 1) if cfg.scale_attention_by_layer else np.ones(cfg.num_layers)
    return jnp.asarray(scale / layer_L)


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row.

    Raises:
        ValueError: more slots than the model has positions.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")
    return cache.empty(config.num_layers, batch, length, config.num_heads, config.width // config.num_heads, dtype)


def example_inputs(config: Config, task: str) -> tuple[Any, ...]:
    """Inputs of the right shapes for a task, to initialise and to trace."""
    return (jnp.zeros((1, 1), jnp.int32),)


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {"base": "GPT2Model", "causal-lm": "GPT2LMHeadModel"}
HF_MODEL_TYPE = "gpt2"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "n_positions",
    "width": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "mlp_dim": "n_inner",
    "activation": "activation_function",
    "norm_epsilon": "layer_norm_epsilon",
    "init_std": "initializer_range",
    "embed_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "residual_dropout": "resid_pdrop",
    "scale_attention": "scale_attn_weights",
    "scale_attention_by_layer": "scale_attn_by_inverse_layer_idx",
    "tied": "tie_word_embeddings",
    "eos_id": "eos_token_id",
}
HF_DEFAULTS = {
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "eos_token_id": 50256,
}
HF_FIXED = {"add_cross_attention": False}
HF_PREFIX = "transformer."
HF_WEIGHTS = (
    # theirs                    ours                                              layout, theirs -> ours
    ("wte.weight",              "token_embed/embedding",                          "V D -> V D"),
    ("wpe.weight",              "position_embed/embedding",                       "T D -> T D"),
    ("h.*.ln_1.weight",         "blocks/attention_norm/scale",                    "D -> D"),
    ("h.*.ln_1.bias",           "blocks/attention_norm/bias",                     "D -> D"),
    ("h.*.attn.c_attn.weight",  "blocks/attention/{query,key,value}/kernel",      "D (n H K) -> n D H K"),
    ("h.*.attn.c_attn.bias",    "blocks/attention/{query,key,value}/bias",        "(n H K) -> n H K"),
    ("h.*.attn.c_proj.weight",  "blocks/attention/out/kernel",                    "(H K) D -> H K D"),
    ("h.*.attn.c_proj.bias",    "blocks/attention/out/bias",                      "D -> D"),
    ("h.*.ln_2.weight",         "blocks/mlp_norm/scale",                          "D -> D"),
    ("h.*.ln_2.bias",           "blocks/mlp_norm/bias",                           "D -> D"),
    ("h.*.mlp.c_fc.weight",     "blocks/mlp_up/kernel",                           "D F -> D F"),
    ("h.*.mlp.c_fc.bias",       "blocks/mlp_up/bias",                             "F -> F"),
    ("h.*.mlp.c_proj.weight",   "blocks/mlp_down/kernel",                         "F D -> F D"),
    ("h.*.mlp.c_proj.bias",     "blocks/mlp_down/bias",                           "D -> D"),
    ("ln_f.weight",             "final_norm/scale",                               "D -> D"),
    ("ln_f.bias",               "final_norm/bias",                                "D -> D"),
)  # fmt: skip
HF_HEADS = {"causal-lm": (("lm_head.weight", "head/embedding", "V D -> V D"),)}
HF_TIED = {"lm_head.weight": "wte.weight"}
HF_IGNORE = ((r"h\.\d+\.attn\.(masked_)?bias", "the causal mask, which old versions saved as a buffer"),)
