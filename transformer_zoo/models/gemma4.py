"""Gemma 4 (Gemma Team 2026), the models of text: layers with and without a window whose heads differ in size and
number, a vector of each token for each layer, last layers that read the keys and values of others, and experts beside
the MLP."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_range, check_slots
from transformer_zoo.nn.embedding import TokenEmbedding
from transformer_zoo.nn.experts import Experts
from transformer_zoo.nn.gemma_decoder import AlternatingBlock, AlternatingDecoder
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LanguageModelConfig, RotaryBlock
from transformer_zoo.nn.stack import Group, Layers, repeating, stack
from transformer_zoo.published import Key, gguf, layer_types, llama_layout, rope, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LanguageModelConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.rotary_decoder.LanguageModelConfig`.

    Raises:
        ValueError: as `LanguageModelConfig`, `local_kv_heads` that do not divide the query heads, a cap of zero,
            layers that reuse keys and values of a kind of layers that is not among those before them, some of the three
            fields of experts without the others, or more experts for a token than there are.
    """

    vocab_size: int = 262144
    max_length: int = 131072
    width: int = 2304
    num_layers: int = 30
    num_heads: int = 8
    num_kv_heads: int = 4  # of layers without a window, as are `head_dim` and `rope`
    head_dim: int = 512
    mlp_dim: int = 9216
    activation: str = "gelu_pytorch_tanh"
    attention_bias: bool = False
    attention_dropout: float = 0.0
    rope: Rope = Rope(kind="proportional", theta=1000000.0, share=0.25)
    local_kv_heads: int = 4  # of layers with a window, as are `local_head_dim` and `local_theta`
    local_head_dim: int = 256
    local_theta: float = 10000.0
    window: int = 512
    global_every: int = 6  # layers n-1, 2n-1, ... and the last one attend to all tokens; the others, to a window
    values_are_keys: bool = False  # in layers without a window: their values are projected as their keys are
    num_reusing_layers: int = 0  # the last ones: each has the keys and values of the last one of its kind before them
    double_mlp: bool = False  # the MLPs of these are twice as wide
    input_dim: int = 256  # of a token's vector for each layer; 0: there is none
    num_experts: int | None = None  # beside the MLP of each layer. None: there are none
    num_chosen: int | None = None  # experts of a token
    expert_dim: int | None = None
    balance_weight: float = 0.0  # of the load-balancing loss in training
    logit_cap: float | None = None  # logits of the vocabulary are pressed into (-cap, cap)
    tied: bool = True
    eos_id: int | None = 1

    can_be_zero = ("input_dim",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.local_kv_heads:
            raise ValueError(
                f"local_kv_heads={self.local_kv_heads} does not divide num_heads={self.num_heads}: "
                "as many query heads share each head of keys and values"
            )
        if self.logit_cap is not None:
            check_range(self, "logit_cap", above=0)
        experts = {name: getattr(self, name) for name in ("num_experts", "num_chosen", "expert_dim")}
        if None in experts.values() and any(experts.values()):
            given = ", ".join(f"{name}={value}" for name, value in experts.items())
            raise ValueError(f"{given}: give all three, or none of them for a model without experts")
        if self.num_experts is not None and self.num_chosen > self.num_experts:
            raise ValueError(f"num_chosen={self.num_chosen} experts for a token, and there are {self.num_experts}")
        Rope().check(self.local_head_dim, self.max_length)
        first = self.num_layers - self.num_reusing_layers
        if not {*self.local_layers()[first:]} <= {*self.local_layers()[: max(first, 0)]}:
            raise ValueError(
                f"num_reusing_layers={self.num_reusing_layers} of num_layers={self.num_layers}: the layers before them "
                "must be of all their kinds, with and without a window"
            )

    def local_layers(self) -> np.ndarray:
        """bool[L]: whether the attention of a layer is limited to the window."""
        return super().local_layers() & (np.arange(1, self.num_layers + 1) < self.num_layers)

    @property
    def stacks(self) -> dict[str, tuple[range, tuple[bool, ...]]]:
        """The layers of each stack of blocks, and whether each layer of its repeating group attends to all tokens."""
        full, first = (~self.local_layers()).tolist(), self.num_layers - self.num_reusing_layers
        parts = {"blocks": range(first), "reusing_blocks": range(first, self.num_layers)}
        return {name: (part, repeating(full[part.start : part.stop])) for name, part in parts.items() if part}

    def of(self, full: bool, reusing: bool = False) -> "Config":
        """The configuration of layers of a kind: all of its layers have these sizes and positions."""
        local = {
            "head_dim": self.local_head_dim, "num_kv_heads": self.local_kv_heads, "rope": Rope(theta=self.local_theta),
        }  # fmt: skip
        doubled = {"mlp_dim": 2 * self.mlp_dim} if reusing and self.double_mlp else {}
        return dataclasses.replace(self, **({} if full else local), **doubled)


_E = {"logit_cap": 30.0}
PRESETS = {
    "gemma-4-e2b": (
        "google/gemma-4-E2B",
        Config(**_E, width=1536, num_layers=35, num_kv_heads=1, local_kv_heads=1, mlp_dim=6144, global_every=5,
               num_reusing_layers=20, double_mlp=True),
    ),
    "gemma-4-e4b": (
        "google/gemma-4-E4B",
        Config(**_E, width=2560, num_layers=42, num_kv_heads=2, local_kv_heads=2, mlp_dim=10240,
               num_reusing_layers=18),
    ),
    "gemma-4-26b-a4b": (
        "google/gemma-4-26B-A4B",
        Config(**_E, max_length=262144, width=2816, num_heads=16, num_kv_heads=2, local_kv_heads=8, mlp_dim=2112,
               window=1024, values_are_keys=True, input_dim=0, num_experts=128, num_chosen=8, expert_dim=704),
    ),
    "gemma-4-31b": (
        "google/gemma-4-31B",
        Config(**_E, max_length=262144, width=5376, num_layers=60, num_heads=32, local_kv_heads=16, mlp_dim=21504,
               window=1024, values_are_keys=True, input_dim=0),
    ),
}  # fmt: skip


class Scale(nn.Module):
    """Multiplies by a number that is published, and not trained."""

    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (), self.param_dtype)
        return x * jax.lax.stop_gradient(scale).astype(x.dtype)


class Block(AlternatingBlock):
    """With norms of queries, keys and values, perhaps experts beside the MLP, and a third sublayer, which reads the
    layer's own vector of each token. `config` is that of the layer's kind."""

    full: bool = True
    reusing: bool = False

    norm = RotaryBlock.norm

    @property
    def scale(self) -> float:
        return 1.0

    def attention_settings(self) -> dict[str, Any]:
        return super().attention_settings() | {
            "query_key_norm": self.norm,
            "norm_values": functools.partial(self.norm, use_scale=False),
            "values_are_keys": self.config.values_are_keys and self.full,
        }

    def rotation(self, rotation: Any, local: None) -> Any:
        return rotation[self.full]

    def attend(
        self, h_BTD: jax.Array, kv: Any, mask: Mask, start: Any, rotation: Any, train: bool
    ) -> tuple[jax.Array, Any]:
        (rotation, kv_seen), kv_now, attention = rotation, None, self.make_attention()
        if not self.full:
            mask = mask.replace(window=self.config.window)
        if not self.reusing:
            kv_seen, kv_now = caches.update(kv, attention.keys_values(h_BTD, rotation), start)
        seen = {"mask": mask, "scale": self.scale, "rotation": rotation, "train": train}
        y_BTD = attention(h_BTD, caches.from_cache_layout(kv_seen), **seen)
        return y_BTD, kv_now if kv is not None or self.config.num_reusing_layers else None

    def read(self, name: str, x_BTD: jax.Array) -> jax.Array:
        """The MLP and the experts have norms of their own."""
        return x_BTD if name == "mlp" else super().read(name, x_BTD)

    def mlp(self, x_BTD: jax.Array) -> jax.Array:
        y_BTD = super().mlp(super().read("mlp", x_BTD))
        if self.config.num_experts is None:
            return y_BTD
        cfg, activation = self.config, ACTIVATIONS[self.config.activation]
        experts = Experts(
            cfg.num_experts, cfg.num_chosen, cfg.expert_dim, self.compute, lambda gate, up: activation(gate) * up,
            scaled=True, balance_weight=cfg.balance_weight, kernel_init=nn.initializers.normal(cfg.init_std),
            name="experts",
        )  # fmt: skip
        routed_BTD = super().read("router", x_BTD) * cfg.width**-0.5
        z_BTD = experts(super().read("experts", x_BTD), routed_BTD)
        return self.added("dense", y_BTD) + self.added("experts", z_BTD)

    def left(self, y_BTD: jax.Array, *own: jax.Array) -> jax.Array:
        dense = functools.partial(
            self.compute.dense, use_bias=False, kernel_init=nn.initializers.normal(self.config.init_std)
        )
        for input_BTP in own:
            gate_BTP = ACTIVATIONS[self.config.activation](dense(self.config.input_dim, name="input_gate")(y_BTD))
            h_BTD = dense(self.config.width, name="input_up")(gate_BTP * input_BTP)
            y_BTD = y_BTD + self.added("input", h_BTD)
        return Scale(self.compute.param_dtype, name="output")(y_BTD)


class Blocks(Group):
    """The repeating group of layers of a stack."""

    config: Any
    compute: Any
    reusing: bool = False

    def setup(self) -> None:
        _, group = self.config.stacks["reusing_blocks" if self.reusing else "blocks"]
        self.layer = [Block(self.config.of(full, self.reusing), self.compute, full, self.reusing) for full in group]

    @property
    def norm(self) -> Any:
        return functools.partial(self.compute.rms_norm, epsilon=self.config.norm_epsilon)


class Model(AlternatingDecoder):
    """Gemma 4 with the head of a task."""

    block: Any = Blocks

    def setup(self) -> None:
        super().setup()
        cfg, compute, init = self.config, self.compute, nn.initializers.normal(self.config.init_std)
        if cfg.num_reusing_layers:
            self.reusing_blocks = Blocks(cfg, compute, reusing=True)
        if cfg.input_dim:
            self.input_embed = TokenEmbedding(cfg.vocab_size, cfg.num_layers * cfg.input_dim, compute, init)
            self.input_project = compute.dense(cfg.num_layers * cfg.input_dim, use_bias=False, kernel_init=init)
            self.input_norm = self.blocks.norm()

    def shared(self, positions_BT: jax.Array) -> tuple[Any, ...]:
        kinds = [self.config.of(full) for full in (False, True)]
        sizes = (self.config.max_length, self.compute.accumulation_dtype)
        return (tuple(kind.rope.rotation(positions_BT, kind.head_dim, *sizes) for kind in kinds),)

    def run_blocks(
        self, x_BTD: jax.Array, tokens_BT: jax.Array, kv: Any, mask: Mask, start: Any, rotations: Any, train: bool
    ) -> tuple[jax.Array, Any]:
        inputs = (self.layer_inputs(tokens_BT, x_BTD),) if self.config.input_dim else ()
        lent = (None, None)
        for name, (part, group) in self.config.stacks.items():
            reusing = name != "blocks"
            own = (None, None, *(x_LBTP[part.start : part.stop] for x_LBTP in inputs))
            x_BTD, kv_now = stack(
                getattr(self, name), x_BTD, (None if reusing else kv, own), mask, start, tuple(zip(rotations, lent)),
                train, length=len(part), compute=self.compute,
            )  # fmt: skip
            if not reusing:
                kept, lent = kv_now, tuple(_last(kv_now, group, full) for full in (False, True))
        return x_BTD, None if kv is None else kept

    def layer_inputs(self, tokens_BT: jax.Array, x_BTD: jax.Array) -> jax.Array:
        """The vectors [L, B, T, P] of the tokens for each layer: of a table, and of their embeddings."""
        cfg = self.config
        by_layer = lambda x: jnp.moveaxis(x.reshape(*tokens_BT.shape, cfg.num_layers, cfg.input_dim), 2, 0)
        projected_LBTP = self.input_norm(by_layer(self.input_project(x_BTD)) * cfg.width**-0.5)
        return (projected_LBTP + by_layer(self.input_embed(tokens_BT)) * cfg.input_dim**0.5) * 0.5**0.5


def _last(kv: Any, group: tuple[bool, ...], full: bool) -> Any:
    """Keys and values of the last layer of a kind, of those of a group's blocks. None: nothing was kept, or there is no
    such layer."""
    if full not in group or kv[0] is None:
        return None
    kept = kv[len(group) - 1 - group[::-1].index(full)]
    return jax.tree.map(lambda x: x[-1], kept, is_leaf=lambda x: isinstance(x, Layers))


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache for `length` tokens a row, in the layers that have keys and values of their own. Those with a
    window keep the keys and values of so many, unless other layers reuse them.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    check_slots(config, length)
    part, group = config.stacks["blocks"]
    # A layer that reuses keys and values is lent what the other has kept. Where a call has many tokens, that is less of
    # a ring than its first tokens attend to.
    window = None if config.num_reusing_layers else config.window

    def of_kind(full: bool) -> Cache:
        kind = config.of(full)
        sizes = (len(part) // len(group), batch, length, kind.num_kv_heads, kind.head_dim)
        return caches.empty(*sizes, dtype, window=None if full else window)

    parts = {full: of_kind(full) for full in {*group}}
    cache = parts[min(parts)]  # of layers with a window, if there are any: it has the ring
    return cache.replace(kv=tuple(parts[full].kv for full in group))


def _body(config: Config) -> rows.Rows:
    found = [
        *rows.embedding("embed_tokens", "token_embed", "V"),
        *rows.embedding("embed_tokens_per_layer", "input_embed", "V"),
        *rows.dense("per_layer_model_projection", "input_project"),
        *rows.norm("per_layer_projection_norm", "input_norm"),
        *rows.norm("norm", "final_norm"),
    ]
    for name, (part, group) in config.stacks.items():
        for i in range(len(group)):
            theirs, ours = f"layers.*[{part.start + i}::{len(group)}]", f"{name}/layer_{i}"
            found += [
                *rows.attention(
                    f"{theirs}.self_attn", f"{ours}/attention", "q_proj k_proj v_proj", f"{theirs}.self_attn.o_proj"
                ),
                *rows.norm(f"{theirs}.self_attn.q_norm", f"{ours}/attention/query_norm"),
                *rows.norm(f"{theirs}.self_attn.k_norm", f"{ours}/attention/key_norm"),
                *rows.dense(f"{theirs}.mlp.gate_proj", f"{ours}/mlp_gate"),
                *rows.dense(f"{theirs}.mlp.up_proj", f"{ours}/mlp_up"),
                *rows.dense(f"{theirs}.mlp.down_proj", f"{ours}/mlp_down"),
                *rows.dense(f"{theirs}.per_layer_input_gate", f"{ours}/input_gate"),
                *rows.dense(f"{theirs}.per_layer_projection", f"{ours}/input_up"),
                *rows.norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm"),
                *rows.norm(f"{theirs}.post_attention_layernorm", f"{ours}/attention_out_norm"),
                *rows.norm(f"{theirs}.pre_feedforward_layernorm", f"{ours}/mlp_norm"),
                *rows.norm(f"{theirs}.post_feedforward_layernorm", f"{ours}/mlp_out_norm"),
                *rows.norm(f"{theirs}.post_per_layer_input_norm", f"{ours}/input_out_norm"),
                (f"{theirs}.router.scale", f"{ours}/router_norm/scale", "D -> D"),
                *rows.dense(f"{theirs}.router.proj", f"{ours}/experts/router"),
                (f"{theirs}.router.per_expert_scale", f"{ours}/experts/scale", "E -> E"),
                (f"{theirs}.experts.gate_up_proj", f"{ours}/experts/{{gate,up}}/kernel", "E (n F) D -> n E D F"),
                (f"{theirs}.experts.down_proj", f"{ours}/experts/down/kernel", "E D F -> E F D"),
                *rows.norm(f"{theirs}.pre_feedforward_layernorm_2", f"{ours}/experts_norm"),
                *rows.norm(f"{theirs}.post_feedforward_layernorm_1", f"{ours}/dense_out_norm"),
                *rows.norm(f"{theirs}.post_feedforward_layernorm_2", f"{ours}/experts_out_norm"),
                (f"{theirs}.layer_scalar", f"{ours}/output/scale", "1 -> "),
            ]
    for i in config.stacks.get("reusing_blocks", [()])[0]:
        for name in ("k_proj", "v_proj", "k_norm"):
            found += rows.dense(f"layers.{i}.self_attn.{name}", f"reusing_blocks/unread/{name}")
    return tuple(found)


def _listed(every: int, layers: int) -> list[str]:
    return [*layer_types.listed(every, layers - 1, every - 1), layer_types.KINDS[1]]


def _global_every(number: int, settings: Mapping[str, Any]) -> int:
    """From the number, or from the list of the layers' kinds, which takes precedence."""
    layers, kinds = settings["num_hidden_layers"], settings["layer_types"]
    n = number if kinds is None else layer_types.number_for(kinds, number, lambda n: _listed(n, layers))
    if n is None:
        raise ValueError(
            f"layer_types is {kinds}: of the num_hidden_layers, every nth and the last must be full_attention, and the "
            "others sliding_attention"
        )
    return n


def _of_full(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the layers without a window that differ from those of the others: in `per_layer_config`, which takes
    precedence, or as published."""
    if (own := settings["per_layer_config"]) is None:
        heads = settings["num_global_key_value_heads"] if settings["attention_k_eq_v"] else None
        return {"head_dim": settings["global_head_dim"]} | ({} if heads is None else {"num_key_value_heads": heads})
    kinds = settings["layer_types"] or _listed(_EVERY, settings["num_hidden_layers"])
    others = {int(i): sizes for i, sizes in own.items()}
    full = [others.pop(i, {}) for i, kind in enumerate(kinds) if kind == "full_attention"]
    if any(others.values()) or any(sizes != full[0] for sizes in full) or {*full[0]} - {"head_dim", _KV_HEADS}:
        raise ValueError(
            f"per_layer_config: layers with full_attention must all have the same head_dim and {_KV_HEADS}, and the "
            "others none of their own"
        )
    return full[0]


def _input_dim(size: int | None, settings: Mapping[str, Any]) -> int:
    if size and (rows := settings["vocab_size_per_layer_input"]) != settings["vocab_size"]:
        raise ValueError(f"vocab_size_per_layer_input is {rows}: only that of vocab_size is supported")
    return size or 0


def _of_experts(number: int | None, settings: Mapping[str, Any]) -> int | None:
    if settings["enable_moe_block"] and number is None:
        raise ValueError("with enable_moe_block it must be a number")
    return number if settings["enable_moe_block"] else None


def _per_layer(config: Config) -> dict[str, dict[str, int]]:
    own = {"head_dim": config.head_dim, _KV_HEADS: config.num_kv_heads}
    return {str(i): own for i, local in enumerate(config.local_layers()) if not local}


_EVERY, _THETA, _KV_HEADS = 6, 10000.0, "num_key_value_heads"
_POSITIONS = {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25}}
_CONFIG = llama_layout.config(Rope, eos_id=1, longest=131072, theta=1000000.0, local_theta=_THETA)
_ROPE = dataclasses.replace(
    _CONFIG["rope"],
    read=lambda value, settings: _CONFIG["rope"].read(value, {**settings, "rope_parameters": value or _POSITIONS}),
)


def _gguf_layers(own: Mapping[str, Any], key: str) -> tuple[list[Any], list[Any]]:
    """Of a GGUF file, a number of the layers with a window, and of those without one."""
    local, layers = own.get("attention.sliding_window_pattern"), own.get("block_count")
    if not isinstance(local, list) or len(local) != layers or {*map(type, local)} - {bool}:
        raise ValueError("gemma4.attention.sliding_window_pattern is no list of what has a window, layer by layer")
    numbers = own.get(key)
    numbers = numbers if isinstance(numbers, list) else [numbers] * layers
    return tuple([number for number, own in zip(numbers, local, strict=True) if own == kind] for kind in (True, False))


def _only(numbers: Iterable[Any], key: str) -> Any:
    """The only number among these. None: there are none."""
    if len(found := {*numbers}) > 1:
        raise ValueError(f"gemma4.{key} is {sorted(found)} in layers of one kind, which must be the same")
    return next(iter(found), None)


def _gguf_kv_heads(own: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Of layers with a window, and without."""
    return tuple(_only(numbers, _GGUF_HEADS) for numbers in _gguf_layers(own, _GGUF_HEADS))


def _gguf_full(own: Mapping[str, Any], shapes: Any) -> dict[str, dict[str, int]]:
    sizes = {"head_dim": own.get("attention.key_length"), _KV_HEADS: _gguf_kv_heads(own)[1]}
    return {str(i): sizes for i, local in enumerate(own["attention.sliding_window_pattern"]) if not local}


def _gguf_mlp(own: Mapping[str, Any]) -> tuple[int, bool]:
    """Of a GGUF file, the width of an MLP, and whether those of the layers that reuse keys and values are twice so."""
    layers, wide = own["block_count"], own.get(_GGUF_MLP)
    wide, first = wide if isinstance(wide, list) else [wide] * layers, layers - own.get("attention.shared_kv_layers", 0)
    width, last = _only(wide[:first], _GGUF_MLP), _only(wide[first:], _GGUF_MLP)
    if last not in (None, width, 2 * width):
        raise ValueError(f"gemma4.{_GGUF_MLP} is {last} in the last layers and {width} before: only twice is supported")
    return width, last == 2 * width


def _gguf_windowed(own: Mapping[str, Any], shapes: Any) -> int:
    """The size of a head with a window, all of which turns."""
    sizes = [own.get(key) for key in ("attention.key_length_swa", "attention.value_length_swa", _GGUF_TURNED)]
    return _only((size for size in sizes if size is not None), "attention.key_length_swa")


def _gguf_turned(settings: Mapping[str, Any]) -> int:
    """Of a head without a window, the elements that turn: all, some of them not at all."""
    if (kind := settings["rope_parameters"]["full_attention"]["rope_type"]) != "proportional":
        raise ValueError(f"layers of Gemma 4 with rotary positions of the kind {kind} have no place in a GGUF file")
    return settings["global_head_dim"]


def _gguf_values_are_keys(own: Mapping[str, Any], shapes: Any) -> bool:
    """Whether a layer that has keys of its own and no window has no values of its own."""
    full = map(int, _gguf_full(own, shapes))
    return any(f"blk.{i}.attn_k.weight" in shapes and f"blk.{i}.attn_v.weight" not in shapes for i in full)


def _by_layer(local: Any, full: Any, settings: Mapping[str, Any]) -> list[Any]:
    return [local if kind == layer_types.KINDS[0] else full for kind in settings["layer_types"]]


def _gguf_local(settings: Mapping[str, Any]) -> list[bool]:
    local, reusing = _by_layer(True, False, settings), settings["num_kv_shared_layers"]
    before, last = local[: len(local) - reusing], local[len(local) - reusing :]
    if last and (before[-1] or (any(last) and not before[-2])):
        raise ValueError(
            f"num_reusing_layers={reusing} has no place in a GGUF file of gemma4: its readers take the keys and values "
            "of the layer before these, where there is no window, and of the one before that, where there is one"
        )
    return local


def _gguf_widths(settings: Mapping[str, Any]) -> int | list[int]:
    width, reusing = settings["intermediate_size"], settings["num_kv_shared_layers"]
    if not settings["use_double_wide_mlp"]:
        return width
    return [width] * (settings["num_hidden_layers"] - reusing) + [2 * width] * reusing


_GGUF_HEADS, _GGUF_MLP = "attention.head_count_kv", "feed_forward_length"
_GGUF_TURNED, _LAYER = "rope.dimension_count_swa", "model.layers.*"
_GGUF = gguf.Gguf(
    architecture="gemma4",
    names=gguf.named(
        {
            **gguf.OUT_NORMS, "blk.*.ffn_norm": f"{_LAYER}.pre_feedforward_layernorm",
            "per_layer_token_embd": "model.embed_tokens_per_layer",
            "per_layer_model_proj": "model.per_layer_model_projection",
            "per_layer_proj_norm": "model.per_layer_projection_norm",
            "blk.*.inp_gate": f"{_LAYER}.per_layer_input_gate", "blk.*.proj": f"{_LAYER}.per_layer_projection",
            "blk.*.post_norm": f"{_LAYER}.post_per_layer_input_norm",
            "blk.*.ffn_gate_inp": f"{_LAYER}.router.proj",
            "blk.*.pre_ffw_norm_2": f"{_LAYER}.pre_feedforward_layernorm_2",
            "blk.*.post_ffw_norm_1": f"{_LAYER}.post_feedforward_layernorm_1",
            "blk.*.post_ffw_norm_2": f"{_LAYER}.post_feedforward_layernorm_2",
        }
    ),
    rows=(
        ("blk.*.layer_output_scale.weight", f"{_LAYER}.layer_scalar", "N -> N"),
        ("blk.*.ffn_gate_inp.scale", f"{_LAYER}.router.scale", "D -> D"),
        ("blk.*.ffn_down_exps.scale", f"{_LAYER}.router.per_expert_scale", "E -> E"),
        ("blk.*.ffn_gate_up_exps.weight", f"{_LAYER}.experts.gate_up_proj", "E F D -> E F D"),
        ("blk.*.ffn_down_exps.weight", f"{_LAYER}.experts.down_proj", "E D F -> E D F"),
    ),
    keys={
        **gguf.PATTERN,
        "attention.key_length": "global_head_dim", "attention.key_length_swa": "head_dim",
        "attention.shared_kv_layers": "num_kv_shared_layers", "final_logit_softcapping": "final_logit_softcapping",
        "embedding_length_per_layer_input": "hidden_size_per_layer_input",
        "expert_count": "num_experts", "expert_used_count": "top_k_experts",
        "expert_feed_forward_length": "moe_intermediate_size",
        **dict.fromkeys((_GGUF_HEADS, _GGUF_MLP, _GGUF_TURNED, "attention.value_length_swa")),
    },
    defaults={
        "attention.sliding_window_pattern": _gguf_local,
        _GGUF_HEADS: lambda settings: _by_layer(settings[_KV_HEADS], settings["num_global_key_value_heads"], settings),
        _GGUF_MLP: _gguf_widths,
        "attention.value_length_swa": lambda settings: settings["head_dim"],
        "rope.dimension_count": _gguf_turned,
        _GGUF_TURNED: lambda settings: settings["head_dim"],
    },
    derived={
        _KV_HEADS: lambda own, shapes: _gguf_kv_heads(own)[0],
        "head_dim": _gguf_windowed,
        "per_layer_config": _gguf_full,
        "intermediate_size": lambda own, shapes: _gguf_mlp(own)[0],
        "use_double_wide_mlp": lambda own, shapes: _gguf_mlp(own)[1],
        "attention_k_eq_v": _gguf_values_are_keys,
        "vocab_size_per_layer_input": lambda own, shapes: shapes.get("per_layer_token_embd.weight", (None,))[0],
        "enable_moe_block": lambda own, shapes: bool(own.get("expert_count")),
    },
    local_theta=_THETA,
)  # fmt: skip


PUBLISHED = dataclasses.replace(
    llama_layout.published(
        model_type="gemma4_text",
        class_prefix="Gemma4",
        gguf=_GGUF,
        classes={"base": "TextModel"},
        tasks=("causal-lm",),
        config={
            **_CONFIG,
            "num_kv_heads": Key(
                "num_global_key_value_heads", None, lambda _, given: _of_full(given).get(_KV_HEADS, given[_KV_HEADS])
            ),
            "head_dim": Key(
                "global_head_dim", 512, lambda _, given: _of_full(given).get("head_dim", given["head_dim"])
            ),
            "local_kv_heads": Key(_KV_HEADS, 4),
            "local_head_dim": Key("head_dim", 256),
            "activation": Key("hidden_activation", "gelu_pytorch_tanh"),
            "attention_bias": Key("attention_bias", False),
            "rope": _ROPE,
            "local_theta": Key(
                "rope_parameters", None,
                lambda value, settings: rope.default_theta("sliding_attention", _THETA, settings),
                lambda value, config: _ROPE.write(config.rope, config),
            ),
            "window": Key("sliding_window", 512),
            "global_every": Key("sliding_window_pattern", _EVERY, _global_every),
            "values_are_keys": Key("attention_k_eq_v", False),
            "num_reusing_layers": Key("num_kv_shared_layers", 0),
            "double_mlp": Key("use_double_wide_mlp", False),
            "input_dim": Key("hidden_size_per_layer_input", 256, _input_dim),
            "num_experts": Key("num_experts", None, _of_experts),
            "num_chosen": Key("top_k_experts", None, _of_experts),
            "expert_dim": Key("moe_intermediate_size", None, _of_experts),
            "balance_weight": Key("router_aux_loss_coef", 0.0),
            "logit_cap": Key("final_logit_softcapping", None),
            "tied": Key("tie_word_embeddings", True),
        },
        defaults={
            "layer_types": None,
            "per_layer_config": None,
            "vocab_size_per_layer_input": 262144,
            "enable_moe_block": False,
        },
        derived={
            "enable_moe_block": lambda config: config.num_experts is not None,
            "layer_types": lambda config: _listed(config.global_every, config.num_layers),
            "per_layer_config": _per_layer,
            "vocab_size_per_layer_input": lambda config: config.vocab_size,
        },
        fixed={"use_bidirectional_attention": (None, "vision")},
    ),
    nested={
        "gemma4": {},
        "gemma4_unified": {
            "hidden_size_per_layer_input": 0, "sliding_window": 1024, "max_position_embeddings": 262144,
        },
    },
    renamed_classes={
        "Gemma4Model": "Gemma4TextModel",
        "Gemma4ForConditionalGeneration": "Gemma4ForCausalLM",
        "Gemma4UnifiedModel": "Gemma4TextModel",
        "Gemma4UnifiedForConditionalGeneration": "Gemma4ForCausalLM",
    },
    other_prefixes=("model.language_model.",),
    body=_body,
    # Published files hold keys and values of the layers that reuse those of others.
    absent=dict.fromkeys(("base", "causal-lm"), r"reusing_blocks/unread/.*"),
    ignored=(
        (r"(vision_tower|vision_embedder|embed_vision)\..*", "the model of images"),
        (r"(audio_tower|embed_audio)\..*", "the model of sounds"),
    ),
)  # fmt: skip
