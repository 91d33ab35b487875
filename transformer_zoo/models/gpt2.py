"""GPT-2: Language Models are Unsupervised Multitask Learners, Radford et al. 2019."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Architecture, Attention, Cache, Compute, Decoder, Embedding, Mask, TokenEmbedding, cache
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.heads import Classifier
from transformer_zoo.nn.tasks import TASKS
from transformer_zoo.published import Key, Published, first_id, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Architecture):
    """The architecture: what a checkpoint fixes."""

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
    scale_attention_by_layer: bool = False  # also by 1/layer, from 1 (Mistral's GPT-2, Karamcheti et al. 2021)
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = 50256
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


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
        x_BTD += drop(attention(h_BTD, cache.from_cache_layout(kv_now), mask=mask, scale=scale, train=train))

        h_BTF = compute.dense(cfg.mlp_dim or 4 * cfg.width, kernel_init=init, name="mlp_up")(
            norm(name="mlp_norm")(x_BTD)
        )
        y_BTD = compute.dense(cfg.width, kernel_init=residual_init, name="mlp_down")(ACTIVATIONS[cfg.activation](h_BTF))
        return x_BTD + drop(y_BTD), None if kv is None else kv_now


class Model(Decoder):
    """GPT-2 with the head of a task."""

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        init, _ = initializers(cfg)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.position_embed = Embedding(cfg.max_length, cfg.width, compute, init)
        self.embed_drop = nn.Dropout(cfg.embed_dropout)
        self.blocks = Block(cfg, compute)
        self.final_norm = compute.layer_norm(epsilon=cfg.norm_epsilon)
        if self.task == "causal-lm" and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        if scores := TASKS[self.task].num_scores(cfg.labels):
            self.head = Classifier(scores, compute, init, bias=False)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        x_BTD = self.token_embed(tokens_BT) + self.position_embed(positions_BT)
        return self.embed_drop(x_BTD, deterministic=not train)

    def per_layer(self) -> jax.Array:
        """The factor of each layer's attention scores, [L]."""
        cfg = self.config
        scale = (cfg.width // cfg.num_heads) ** -0.5 if cfg.scale_attention else 1.0
        layer_L = np.arange(1, cfg.num_layers + 1) if cfg.scale_attention_by_layer else np.ones(cfg.num_layers)
        return jnp.asarray(scale / layer_L)


def initializers(cfg: Config) -> tuple[Any, Any]:
    """For all weights, and for those that write to the residual stream: smaller by the root of their number (2.3)."""
    return nn.initializers.normal(cfg.init_std), nn.initializers.normal(cfg.init_std / (2 * cfg.num_layers) ** 0.5)


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row.

    Raises:
        ValueError: more slots than the model has positions.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")
    return cache.empty(config.num_layers, batch, length, config.num_heads, config.width // config.num_heads, dtype)


PUBLISHED = Published(
    model_type="gpt2",
    class_prefix="GPT2",
    classes={"causal-lm": "LMHeadModel"},
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("n_positions"),
        "width": Key("n_embd"),
        "num_layers": Key("n_layer"),
        "num_heads": Key("n_head"),
        "mlp_dim": Key("n_inner", None),
        "activation": Key("activation_function", "gelu_new"),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "init_std": Key("initializer_range", 0.02),
        "embed_dropout": Key("embd_pdrop", 0.1),
        "attention_dropout": Key("attn_pdrop", 0.1),
        "residual_dropout": Key("resid_pdrop", 0.1),
        "scale_attention": Key("scale_attn_weights", True),
        "scale_attention_by_layer": Key("scale_attn_by_inverse_layer_idx", False),
        "tied": Key("tie_word_embeddings", True),
        "eos_id": Key("eos_token_id", 50256, first_id),
        "problem": Key("problem_type", None),
    },
    fixed={"add_cross_attention": False},
    prefix="transformer.",
    body=(
        *rows.embedding("wte", "token_embed", "V"),
        *rows.embedding("wpe", "position_embed"),
        *rows.norm("h.*.ln_1", "blocks/attention_norm"),
        ("h.*.attn.c_attn.weight", "blocks/attention/{query,key,value}/kernel", "D (n H K) -> n D H K"),
        ("h.*.attn.c_attn.bias", "blocks/attention/{query,key,value}/bias", "(n H K) -> n H K"),
        ("h.*.attn.c_proj.weight", "blocks/attention/out/kernel", "(H K) D -> H K D"),
        ("h.*.attn.c_proj.bias", "blocks/attention/out/bias", "D -> D"),
        *rows.norm("h.*.ln_2", "blocks/mlp_norm"),
        *rows.conv1d("h.*.mlp.c_fc", "blocks/mlp_up"),
        *rows.conv1d("h.*.mlp.c_proj", "blocks/mlp_down"),
        *rows.norm("ln_f", "final_norm"),
    ),
    heads={
        "causal-lm": rows.embedding("lm_head", "head", "V"),
        "sequence-classification": (("score.weight", "head/scores/kernel", "O I -> I O"),),
    },
    tied={"lm_head.weight": "wte.weight"},
    ignored=((r"h\.\d+\.attn\.(masked_)?bias", "the causal mask, which old versions saved as a buffer"),),
)
