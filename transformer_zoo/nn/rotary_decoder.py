"""LLaMA's decoder: RMS norms first, rotary positions, a gated MLP (Touvron et al. 2023, section 2.2); and what models
made of it share."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.architecture import Architecture
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.decoder import Decoder
from transformer_zoo.nn.embedding import TokenEmbedding
from transformer_zoo.nn.heads import Classifier
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryConfig(Architecture):
    """The fields of all these families. The defaults are those of LLaMA's 7B model.

    Raises:
        ValueError: as `Architecture`, key and value heads that do not divide the query heads, or rotary positions that
            do not go with the heads.
    """

    vocab_size: int = 32000
    max_length: int = 2048
    width: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    mlp_dim: int = 11008
    activation: str = "silu"
    norm_epsilon: float = 1e-6
    rope: Rope = Rope()
    init_std: float = 0.02
    attention_dropout: float = 0.0
    tied: bool = False  # the output layer is the table of token embeddings
    eos_id: int | None = 2
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    # Not annotated, and so no field. A family with windows has a field of this name; one with a head for token
    # classification has a field `head_dropout`.
    window = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}: "
                "as many query heads share each head of keys and values"
            )
        self.rope.check(self.head_dim, self.max_length)

    @property
    def steady_length(self) -> int | None:
        return self.rope.steady_length(self.max_length)

    def local_layers(self) -> np.ndarray:
        """bool[L]: whether the attention of a layer is limited to the window."""
        return np.full(self.num_layers, self.window is not None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LateWindowConfig(RotaryConfig):
    """The fields of families whose last layers may have a window. The defaults are those of Qwen2."""

    vocab_size: int = 151936
    max_length: int = 32768
    rope: Rope = Rope(theta=1000000.0)
    head_dropout: float = 0.1  # of token classification
    window: int | None = None
    global_layers: int = 28  # the first ones, without a window
    eos_id: int | None = 151643

    can_be_zero = ("global_layers",)

    def local_layers(self) -> np.ndarray:
        return super().local_layers() & (np.arange(self.num_layers) >= self.global_layers)


class RotaryBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with a gated MLP (Shazeer 2020)."""

    config: Any
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, rotation: Any, train: bool
    ) -> tuple[jax.Array, Any]:
        kv, local = layer
        if local is not None:
            mask = mask.replace(window=self.config.window, local=local)
        turn = self.rotation(rotation, local)
        y_BTD, kv_now = self.attend(self.norm(name="attention_norm")(x_BTD), kv, mask, start, turn, train)
        x_BTD += self.added("attention", y_BTD)
        x_BTD += self.added("mlp", self.mlp(self.norm(name="mlp_norm")(x_BTD)))
        return x_BTD, kv_now

    def attend(
        self, h_BTD: jax.Array, kv: Any, mask: Mask, start: Any, rotation: Any, train: bool
    ) -> tuple[jax.Array, Any]:
        """The attention of a layer, and its part of the cache with these tokens."""
        cfg, init = self.config, nn.initializers.normal(self.config.init_std)
        attention = Attention(
            cfg.num_heads, cfg.head_dim, self.compute, num_kv_heads=cfg.num_kv_heads, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention", **self.attention_settings(),
        )  # fmt: skip
        kv_seen, kv_now = caches.update(kv, attention.keys_values(h_BTD, rotation), start)
        seen = {"mask": mask, "scale": self.scale, "rotation": rotation, "train": train}
        return attention(h_BTD, caches.from_cache_layout(kv_seen), **seen), None if kv is None else kv_now

    def mlp(self, h_BTD: jax.Array) -> jax.Array:
        """The gated MLP of a layer."""
        cfg = self.config
        dense = functools.partial(
            self.compute.dense, use_bias=self.mlp_bias, kernel_init=nn.initializers.normal(cfg.init_std)
        )
        gate_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, name="mlp_gate")(h_BTD))
        h_BTF = gate_BTF * dense(cfg.mlp_dim, name="mlp_up")(h_BTD)
        return dense(cfg.width, name="mlp_down")(h_BTF)

    @property
    def norm(self) -> Any:
        """Makes the norms, those of queries and keys and the one after the last block included."""
        return functools.partial(self.compute.rms_norm, epsilon=self.config.norm_epsilon)

    @property
    def scale(self) -> float | None:
        """What attention scores are multiplied by. None: 1/sqrt(K)."""
        return None

    @property
    def mlp_bias(self) -> bool:
        """Whether the layers of the MLP have biases."""
        return False

    def attention_settings(self) -> dict[str, Any]:
        """What a family's attention has besides: arguments of `Attention`."""
        return {"use_bias": False}

    def rotation(self, rotation: Any, local: jax.Array | None) -> Any:
        """The rotation of a layer, by what the decoder's `shared` returns."""
        return rotation

    def added(self, name: str, y_BTD: jax.Array) -> jax.Array:
        """What is added to the residual stream for the output of a sublayer of this name."""
        return y_BTD


class RotaryDecoder(Decoder):
    """The decoder of these families, with the head of a task. A family may have a block of its own."""

    block: Any = RotaryBlock

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        task = TASKS[self.task]
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.blocks = self.block(cfg, compute)
        self.final_norm = self.blocks.norm()
        if task.vocabulary and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        if scores := task.num_scores(cfg.labels):
            per_token = {"dropout": cfg.head_dropout} if task.per_token else {"bias": False}
            self.head = Classifier(scores, compute, init, **per_token)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        return self.token_embed(tokens_BT)

    def per_layer(self) -> jax.Array | None:
        """bool[L]: whether a layer's attention is limited to the window. None: there is no window."""
        return None if self.config.window is None else jnp.asarray(self.config.local_layers())

    def shared(self, positions_BT: jax.Array) -> tuple[Any, ...]:
        cfg = self.config
        return (cfg.rope.rotation(positions_BT, cfg.head_dim, cfg.max_length, self.compute.accumulation_dtype),)


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache for `length` tokens a row. If all layers have a window, it keeps the keys and values of so many.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")
    window = config.window if config.local_layers().all() else None
    sizes = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    return caches.empty(*sizes, dtype, window=window)
