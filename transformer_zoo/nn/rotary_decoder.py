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
from transformer_zoo.nn.checks import check_range, check_slots
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.decoder import Decoder
from transformer_zoo.nn.embedding import TokenEmbedding
from transformer_zoo.nn.heads import LogitsBias
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.tasks import TASKS


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig(Architecture):
    """The fields of all these families, those without a head that classifies included; attention has as many heads of
    keys and values as of queries, each of `width / num_heads` elements. The defaults are those of LLaMA's 7B model.

    Raises:
        ValueError: as `Architecture`, key and value heads that do not divide the query heads, rotary positions that do
            not go with the heads, or pairs of elements other than the family's.
    """

    vocab_size: int = 32000
    max_length: int = 2048
    width: int = 4096
    num_layers: int = 32
    num_heads: int = 32
    mlp_dim: int = 11008
    activation: str = "silu"
    norm_epsilon: float = 1e-6
    init_std: float = 0.02
    tied: bool = False  # the output layer is the table of token embeddings
    eos_id: int | None = 2

    # Not annotated, and so no fields: a family that has them has fields of these names. One with a head for token
    # classification has a field `head_dropout`.
    labels = None
    rope = Rope()
    window = None
    global_every = None
    local_theta = None
    attention_bias = False
    mlp_bias = False
    logits_bias = False
    embed_dropout = 0.0
    attention_dropout = 0.0
    residual_dropout = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}: "
                "as many query heads share each head of keys and values"
            )
        self.rope.check(self.rope_dim, self.max_length)
        default = type(self).rope
        if isinstance(default, Rope) and self.rope.interleaved != default.interleaved:
            raise ValueError(f"rope.interleaved={self.rope.interleaved}: this family pairs elements the other way")
        if self.rope.query_growth is not None and (not isinstance(default, Rope) or default.query_growth is None):
            raise ValueError(f"rope.query_growth={self.rope.query_growth}: queries of this family do not grow")
        if self.local_theta is not None:
            check_range(self, "local_theta", above=0)
            if self.rope.share != 1 and self.rope.kind != "proportional":
                raise ValueError(
                    f"rope has share={self.rope.share}: layers with a window rotate whole heads, so must all"
                )

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        return self.num_heads

    @property
    def rope_dim(self) -> int:
        """The size of the part of a head that has rotary positions, of which `rope` rotates its share."""
        return self.head_dim

    @property
    def steady_length(self) -> int | None:
        return self.rope.steady_length(self.max_length)

    def local_layers(self) -> np.ndarray:
        """bool[L]: whether the attention of a layer is limited to the window: all layers, or, with `global_every`=n,
        all but n-1, 2n-1, ..."""
        local_L = np.full(self.num_layers, self.window is not None)
        return local_L if self.global_every is None else local_L & ~every_nth(self.global_every, self.num_layers)

    def rotated_layers(self) -> np.ndarray | None:
        """bool[L]: whether a layer has rotary positions; the others have no positions at all. None: all layers have."""
        return None


def every_nth(n: int, num_layers: int) -> np.ndarray:
    """bool[L]: layers n-1, 2n-1, ..."""
    return np.arange(1, num_layers + 1) % n == 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiHeadConfig(LanguageModelConfig):
    """With labels, for heads that classify."""

    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryConfig(MultiHeadConfig):
    """With a number of heads of keys and values, and a size of heads, of their own."""

    num_kv_heads: int = 32
    head_dim: int = 128
    rope: Rope = Rope()
    attention_dropout: float = 0.0


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
    """x + attention(norm(x)), then x + mlp(norm(x)), with a gated MLP (Shazeer 2020); if parallel,
    x + attention(norm(x)) + mlp(norm(x))."""

    config: Any
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, rotation: Any, train: bool
    ) -> tuple[jax.Array, Any]:
        kv, (local, rotated, *own) = layer
        mask, start = caches.of_layer(kv, mask, start)
        if local is not None:
            mask = mask.replace(window=self.config.window, local=local)
        turn = self.rotation(rotation, local)
        if rotated is not None:
            turn = turn.where(rotated)
        drop = lambda name, y_BTD: nn.Dropout(self.dropout(name), deterministic=not train)(y_BTD)
        h_BTD = self.read("attention", x_BTD)
        y_BTD, kv_now = self.attend(h_BTD, kv, mask, start, turn, train)
        y_BTD = x_BTD + drop("attention", self.added("attention", y_BTD))
        if not self.shares_norm:
            h_BTD = self.read("mlp", x_BTD if self.parallel else y_BTD)
        return self.left(y_BTD + drop("mlp", self.added("mlp", self.mlp(h_BTD))), *own), kv_now

    def attend(
        self, h_BTD: jax.Array, kv: Any, mask: Mask, start: Any, rotation: Any, train: bool, bias: Any = None
    ) -> tuple[jax.Array, Any]:
        """The output of a layer's attention, and its part of the cache with these tokens. A bias is that of scores."""
        attention = self.make_attention()
        kv_seen, kv_now = caches.update(kv, attention.keys_values(h_BTD, rotation), start)
        seen = {"mask": mask, "bias": bias, "scale": self.scale, "rotation": rotation, "train": train}
        return attention(h_BTD, caches.from_cache_layout(kv_seen), **seen), None if kv is None else kv_now

    def make_attention(self) -> Attention:
        """The attention of a layer."""
        cfg, init = self.config, nn.initializers.normal(self.config.init_std)
        return Attention(
            cfg.num_heads, cfg.head_dim, self.compute, num_kv_heads=cfg.num_kv_heads, dropout=cfg.attention_dropout,
            init=init, out_init=init, name="attention", **self.attention_settings(),
        )  # fmt: skip

    def mlp(self, h_BTD: jax.Array) -> jax.Array:
        """The MLP of a layer."""
        cfg, activation = self.config, ACTIVATIONS[self.config.activation]
        dense = functools.partial(
            self.compute.dense, use_bias=self.mlp_bias, kernel_init=nn.initializers.normal(cfg.init_std)
        )
        h_BTF = dense(self.mlp_dim, name="mlp_up")(h_BTD)
        h_BTF = activation(dense(self.mlp_dim, name="mlp_gate")(h_BTD)) * h_BTF if self.gated else activation(h_BTF)
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
    def mlp_dim(self) -> int:
        """The width of the MLP."""
        return self.config.mlp_dim

    @property
    def mlp_bias(self) -> bool:
        """Whether the layers of the MLP have biases."""
        return self.config.mlp_bias

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate."""
        return True

    @property
    def parallel(self) -> bool:
        """Whether the MLP reads the layer's input, as attention does, and not the sum of that and attention's output
        (Wang and Komatsuzaki 2021)."""
        return False

    @property
    def shares_norm(self) -> bool:
        """Whether the MLP of a parallel block reads what attention reads, and has no norm of its own."""
        return False

    def attention_settings(self) -> dict[str, Any]:
        """What a family's attention has besides: arguments of `Attention`."""
        return {"use_bias": self.config.attention_bias}

    def rotation(self, rotation: Any, local: jax.Array | None) -> Any:
        """The rotation of a layer, by what the decoder's `shared` returns."""
        if self.config.local_theta is None:
            return rotation
        return jax.tree.map(functools.partial(jnp.where, local), *rotation)

    def read(self, name: str, x_BTD: jax.Array) -> jax.Array:
        """What a sublayer of this name reads of the residual stream."""
        return self.norm(name=f"{name}_norm")(x_BTD)

    def added(self, name: str, y_BTD: jax.Array) -> jax.Array:
        """What is added to the residual stream for the output of a sublayer of this name."""
        return y_BTD

    def left(self, y_BTD: jax.Array, *own: jax.Array) -> jax.Array:
        """What a layer leaves in the residual stream, from the sum of its input and its sublayers; `own` is what the
        decoder's `per_layer` has besides."""
        return y_BTD

    def dropout(self, name: str) -> float:
        """The rate of dropout of what a sublayer of this name adds."""
        return self.config.residual_dropout


class LayerNormBlock(RotaryBlock):
    """With layer norms, and an MLP without a gate."""

    @property
    def norm(self) -> Any:
        return functools.partial(self.compute.layer_norm, epsilon=self.config.norm_epsilon)

    @property
    def gated(self) -> bool:
        return False


class RotaryDecoder(Decoder):
    """The decoder of these families, with the head of a task. A family may have a block of its own."""

    block: Any = RotaryBlock

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        task = TASKS[self.task]
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.embed_drop = nn.Dropout(cfg.embed_dropout)
        self.blocks = self.block(cfg, compute)
        self.final_norm = self.blocks.norm()
        if task.vocabulary and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        if task.vocabulary and cfg.logits_bias:
            self.lm_head = LogitsBias(cfg.vocab_size, compute)
        self.add_classifier(init)

    def embed(self, tokens_BT: jax.Array, positions_BT: jax.Array, train: bool) -> jax.Array:
        return self.embed_drop(self.token_embed(tokens_BT), deterministic=not train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        logits_BTV = super().logits(hidden_BTD)
        return self.lm_head(logits_BTV) if self.config.logits_bias else logits_BTV

    def per_layer(self) -> tuple[jax.Array | None, jax.Array | None]:
        """bool[L]: whether a layer's attention is limited to the window, None if there is no window; and whether it has
        rotary positions, None if all have."""
        local_L = None if self.config.window is None else self.config.local_layers()
        return jax.tree.map(jnp.asarray, (local_L, self.config.rotated_layers()))

    def shared(self, positions_BT: jax.Array) -> tuple[Any, ...]:
        cfg = self.config
        sizes = (cfg.rope_dim, cfg.max_length, self.compute.accumulation_dtype)
        rotation = cfg.rope.rotation(positions_BT, *sizes)
        if cfg.local_theta is None:
            return (rotation,)
        return ((Rope(theta=cfg.local_theta).rotation(positions_BT, *sizes), rotation),)


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache for `length` tokens a row. Layers with a window keep the keys and values of so many.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    check_slots(config, length)
    sizes = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    return caches.empty(*sizes, dtype, window=config.window, local_layers=config.local_layers())
