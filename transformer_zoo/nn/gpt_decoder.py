"""GPT's decoder: layer norms, after each sublayer (Radford et al. 2018, section 4.1) or before it (Radford et al. 2019,
section 2.3), and an MLP without a gate; and what models made of it share."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.decoder import Decoder
from transformer_zoo.nn.embedding import Embedding, TokenEmbedding
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class GptConfig(Architecture):
    """Fields of GPT-2 and of models made of it. The defaults are those of its smallest size. A family adds `tied`, by
    which the output layer is the table of token embeddings, `eos_id`, `labels`, `problem` and, where it has a head for
    token classification, `head_dropout`."""

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


class GptBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); if `norm_last`, norm(x + attention(x)), then norm(x + mlp(x))."""

    config: Any
    compute: Compute

    @nn.compact
    def __call__(self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, *rest: Any) -> tuple[jax.Array, Any]:
        cfg, (kv, own), (*shared, train) = self.config, layer, rest
        mask, start = caches.of_layer(kv, mask, start)
        init = nn.initializers.normal(cfg.init_std)
        drop = nn.Dropout(cfg.residual_dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, self.compute, dropout=cfg.attention_dropout,
            init=init, out_init=self.residual_init, name="attention", **self.attention_settings(),
        )  # fmt: skip
        dense = functools.partial(self.compute.dense, use_bias=self.use_bias)

        h_BTD = x_BTD if self.norm_last else self.norm(name="attention_norm")(x_BTD)
        kv_seen, kv_now = caches.update(kv, attention.keys_values(h_BTD), start)
        y_BTD = attention(h_BTD, caches.from_cache_layout(kv_seen), train=train, **self.scores(mask, own, *shared))
        x_BTD += drop(y_BTD)
        x_BTD = self.norm(name="attention_norm")(x_BTD) if self.norm_last else x_BTD

        h_BTD = x_BTD if self.norm_last else self.norm(name="mlp_norm")(x_BTD)
        h_BTF = dense(cfg.mlp_dim or 4 * cfg.width, kernel_init=init, name="mlp_up")(h_BTD)
        y_BTD = dense(cfg.width, kernel_init=self.residual_init, name="mlp_down")(self.activate(h_BTF))
        x_BTD += drop(y_BTD)
        return self.norm(name="mlp_norm")(x_BTD) if self.norm_last else x_BTD, None if kv is None else kv_now

    @property
    def norm(self) -> Any:
        """Makes the norms, the one after the last block included."""
        return functools.partial(self.compute.layer_norm, epsilon=self.config.norm_epsilon)

    @property
    def residual_init(self) -> Any:
        """Initialises the weights that write to the residual stream: smaller by the root of their number (Radford et
        al. 2019, section 2.3)."""
        return nn.initializers.normal(self.config.init_std / (2 * self.config.num_layers) ** 0.5)

    @property
    def norm_last(self) -> bool:
        """Whether sums are normalised, and not the inputs of attention and MLP."""
        return False

    @property
    def use_bias(self) -> bool:
        """Whether the layers of the MLP have biases."""
        return True

    def attention_settings(self) -> dict[str, Any]:
        """What a family's attention has besides: arguments of `Attention`."""
        return {}

    def scores(self, mask: Mask, own: Any, *shared: Any) -> dict[str, Any]:
        """How a layer scores keys: arguments of the call of its attention, given its part of `per_layer` and what the
        decoder's `shared` returns."""
        return {"mask": mask}

    def activate(self, h_BTF: jax.Array) -> jax.Array:
        """The activation function of the MLP."""
        return ACTIVATIONS[self.config.activation](h_BTF)


class GptDecoder(Decoder):
    """The decoder of these families, with the head of a task. Positions are learned, unless a family has other
    `add_embeddings` and `embed`."""

    block: Any = GptBlock

    OFFSET = 0  # rows of the table of positions before that of position 0

    def setup(self) -> None:
        cfg, compute, task = self.config, self.compute, TASKS[self.task]
        init = nn.initializers.normal(cfg.init_std)
        self.token_embed = TokenEmbedding(cfg.vocab_size, self.embed_width, compute, init)
        self.blocks = self.block(cfg, compute)
        self.final_norm = self.blocks.norm()
        self.add_embeddings(init)
        if task.vocabulary and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, self.embed_width, compute, init)
        self.add_classifier(init)

    def add_embeddings(self, init: Any) -> None:
        """Makes the layers of `embed` besides the table of tokens."""
        cfg = self.config
        self.position_embed = Embedding(self.OFFSET + cfg.max_length, cfg.width, self.compute, init)
        self.embed_drop = nn.Dropout(cfg.embed_dropout)

    @property
    def embed_width(self) -> int:
        """The width of the table of token embeddings and of the output layer."""
        return self.config.width

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        x_BTD = self.embed_tokens(tokens_BT) + self.position_embed(self.OFFSET + positions_BT)
        return self.embed_drop(x_BTD, deterministic=not train)

    def embed_tokens(self, tokens_BT: jax.Array) -> jax.Array:
        """Embeddings [B, T, D] of the tokens alone."""
        return self.token_embed(tokens_BT)


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32, **windows: Any) -> Cache:
    """An empty cache for `length` tokens a row.

    Args:
        windows: of a family that has them, those of `cache.empty`.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    if not 0 < length <= (config.max_length or length):
        most = "" if config.max_length is None else f", and at most {config.max_length}, the model's positions"
        raise ValueError(f"a cache of {length} tokens: ask for at least 1{most}")
    sizes = (config.num_layers, batch, length, config.num_heads, config.width // config.num_heads)
    return caches.empty(*sizes, dtype, **windows)
