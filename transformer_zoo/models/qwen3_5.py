"""Qwen3.5 (Qwen Team 2026), the models of text: three layers of the gated delta rule, and one of attention with an
output gate, by turns."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn import delta
from transformer_zoo.nn.cache import Cache, State
from transformer_zoo.nn.checks import check_slots
from transformer_zoo.nn.gemma_decoder import GemmaBlock
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, RotaryDecoder, every_nth
from transformer_zoo.nn.stack import Group, repeating
from transformer_zoo.published import Key, gguf, layer_types, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.rotary_decoder.RotaryConfig`.

    Raises:
        ValueError: as `RotaryConfig`, or heads of keys that do not divide those of values.
    """

    vocab_size: int = 248320
    max_length: int = 32768
    num_heads: int = 16
    num_kv_heads: int = 4
    head_dim: int = 256
    mlp_dim: int = 12288
    attention_bias: bool = False
    rope: Rope = Rope(share=0.25)
    full_every: int = 4  # layers n-1, 2n-1, ... have attention; the others, the gated delta rule
    num_delta_key_heads: int = 16  # of queries and keys
    num_delta_value_heads: int = 32
    delta_key_dim: int = 128
    delta_value_dim: int = 128
    conv_size: int = 4
    eos_id: int | None = 248044

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_delta_value_heads % self.num_delta_key_heads:
            raise ValueError(
                f"num_delta_key_heads={self.num_delta_key_heads} does not divide "
                f"num_delta_value_heads={self.num_delta_value_heads}: as many of these share each head of keys"
            )

    @property
    def group(self) -> tuple[bool, ...]:
        """Whether each layer of the repeating group has attention."""
        return repeating(every_nth(self.full_every, self.num_layers).tolist())


_LONG = {"max_length": 262144, "rope": Rope(theta=10000000.0, share=0.25)}
_SMALL = _LONG | {"tied": True, "num_layers": 24, "num_heads": 8, "num_kv_heads": 2, "num_delta_value_heads": 16}
PRESETS = {
    "qwen3.5-0.8b": ("Qwen/Qwen3.5-0.8B", Config(**_SMALL, width=1024, mlp_dim=3584)),
    "qwen3.5-4b": ("Qwen/Qwen3.5-4B", Config(**_LONG, width=2560, mlp_dim=9216, tied=True)),
    "qwen3.5-9b": ("Qwen/Qwen3.5-9B", Config(**_LONG)),
    "qwen3.5-27b": (
        "Qwen/Qwen3.5-27B",
        Config(**_LONG, width=5120, num_layers=64, num_heads=24, mlp_dim=17408, num_delta_value_heads=48),
    ),
}


class AttentionBlock(GemmaBlock):
    """With a norm of each query and key, and an output gate."""

    def attention_settings(self) -> dict[str, Any]:
        return super().attention_settings() | {"query_key_norm": self.norm, "output_gate": True}


class DeltaBlock(GemmaBlock):
    """With the gated delta rule in the place of attention."""

    def attend(
        self, h_BTD: jax.Array, state: State | None, mask: Mask, start: Any, rotation: Any, train: bool
    ) -> tuple[jax.Array, State | None]:
        cfg, init = self.config, jax.nn.initializers.normal(self.config.init_std)
        layer = delta.GatedDeltaNet(
            cfg.num_delta_key_heads, cfg.num_delta_value_heads, cfg.delta_key_dim, cfg.delta_value_dim, cfg.conv_size,
            cfg.activation, cfg.norm_epsilon, self.compute, init, name="delta",
        )  # fmt: skip
        y_BTD, now = layer(h_BTD, state, mask.queries(h_BTD.shape[1]), delta.starts(mask.documents_BT))
        return y_BTD, None if state is None else now


class Blocks(Group):
    """The repeating group of layers."""

    config: Any
    compute: Any

    def setup(self) -> None:
        kinds = [AttentionBlock if full else DeltaBlock for full in self.config.group]
        self.layer = [kind(self.config, self.compute) for kind in kinds]

    @property
    def norm(self) -> Any:
        return functools.partial(self.compute.offset_rms_norm, epsilon=self.config.norm_epsilon)


class Model(RotaryDecoder):
    """Qwen3.5 with the head of a task."""

    block: Any = Blocks


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row in the layers with attention, and the state of the others.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    check_slots(config, length)
    groups = config.num_layers // len(config.group)
    slots = caches.empty(groups, batch, length, config.num_kv_heads, config.head_dim, dtype)
    keys, values = config.num_delta_key_heads, config.num_delta_value_heads
    inputs = lambda heads, size: jnp.zeros((groups, batch, heads, config.conv_size - 1, size), dtype)
    state = State(
        inputs=(*(inputs(keys, config.delta_key_dim) for _ in "qk"), inputs(values, config.delta_value_dim)),
        matrices=jnp.zeros(
            (groups, batch, values, config.delta_key_dim, config.delta_value_dim), jnp.promote_types(dtype, jnp.float32)
        ),
    )
    return slots.replace(kv=tuple(slots.kv if full else state for full in config.group))


def _layer_types(config: Config) -> list[str]:
    return _listed(config.full_every, config.num_layers)


def _further_token(config: Config) -> tuple[tuple[str, str, str], ...]:
    """A module of its own, or in GGUF files a layer behind the others."""
    what, layer = "a layer that predicts a further token", rf"layers\.{config.num_layers}"
    return ((r"mtp\..*", r"mtp\..*", what), (rf"{layer}\..*", rf"{layer}\.eh_proj\.weight", what))


def _listed(every: int, layers: int) -> list[str]:
    return ["linear_attention" if i % every else "full_attention" for i in range(1, layers + 1)]


def _body(config: Config) -> rows.Rows:
    found = [*rows.embedding("embed_tokens", "token_embed", "V"), *rows.norm("norm", "final_norm")]
    for i, full in enumerate(config.group):
        theirs, ours = f"layers.*[{i}::{len(config.group)}]", f"blocks/layer_{i}"
        found += [
            *rows.norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm"),
            *rows.norm(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm"),
            *rows.dense(f"{theirs}.mlp.gate_proj", f"{ours}/mlp_gate"),
            *rows.dense(f"{theirs}.mlp.up_proj", f"{ours}/mlp_up"),
            *rows.dense(f"{theirs}.mlp.down_proj", f"{ours}/mlp_down"),
            *(_attention if full else _delta)(theirs, ours),
        ]
    return tuple(found)


def _attention(theirs: str, ours: str) -> rows.Rows:
    theirs, ours = f"{theirs}.self_attn", f"{ours}/attention"
    return (
        (f"{theirs}.q_proj.weight", f"{ours}/{{query,gate}}/kernel", "(H n K) D -> n D H K"),
        (f"{theirs}.q_proj.bias", f"{ours}/{{query,gate}}/bias", "(H n K) -> n H K"),
        *rows.split_heads(f"{theirs}.k_proj", f"{ours}/key"),
        *rows.split_heads(f"{theirs}.v_proj", f"{ours}/value"),
        *rows.merge_heads(f"{theirs}.o_proj", f"{ours}/out"),
        *rows.norm(f"{theirs}.q_norm", f"{ours}/query_norm"),
        *rows.norm(f"{theirs}.k_norm", f"{ours}/key_norm"),
    )


def _delta(theirs: str, ours: str) -> rows.Rows:
    theirs, ours = f"{theirs}.linear_attn", f"{ours}/delta"
    return (
        (f"{theirs}.in_proj_qkv.weight", f"{ours}/{{query,key,value}}/kernel", "(n H K) D -> n D H K"),
        (f"{theirs}.conv1d.weight", f"{ours}/{{query,key,value}}_conv/kernel", "(n H K) 1 J -> n J H K"),
        *rows.split_heads(f"{theirs}.in_proj_z", f"{ours}/gate"),
        *rows.dense(f"{theirs}.in_proj_a", f"{ours}/decay"),
        *rows.dense(f"{theirs}.in_proj_b", f"{ours}/beta"),
        (f"{theirs}.A_log", f"{ours}/log_rate", "H -> H"),
        (f"{theirs}.dt_bias", f"{ours}/decay_shift", "H -> H"),
        *rows.norm(f"{theirs}.norm", f"{ours}/out_norm"),
        *rows.merge_heads(f"{theirs}.out_proj", f"{ours}/out"),
    )


def _full_every(number: int, settings: Mapping[str, Any]) -> int:
    """From the number, or from the list of the layers' kinds, which takes precedence."""
    layers, kinds = settings["num_hidden_layers"], settings["layer_types"]
    n = number if kinds is None else layer_types.number_for(kinds, number, lambda n: _listed(n, layers))
    if n is None:
        raise ValueError(
            f"layer_types is {kinds}: of the num_hidden_layers, every nth must be full_attention, and the others "
            "linear_attention"
        )
    return n


def _rope(key: Key) -> Key:
    """The key of rotary positions. Of a text, the positions in time, height and width are the same, so that it does not
    matter which of them a pair of elements turns by (`mrope_section`)."""

    def read(value: Any, settings: Mapping[str, Any]) -> Any:
        given = {name: x for name, x in (value or {}).items() if not name.startswith("mrope_")}
        return key.read(given, settings)

    def write(value: Any, config: Config) -> dict[str, Any]:
        return key.write(value, config) | {"partial_rotary_factor": value.share}

    return dataclasses.replace(key, read=read, write=write)


_CONFIG = llama_layout.config(Rope, eos_id=None, longest=32768)


def _gguf_heads(own: Mapping[str, Any]) -> tuple[int, int, int, int]:
    """Of a GGUF file, the heads of keys in the gated delta rule, the heads of values for each, and their sizes."""
    keys, values, size, inner = (own[f"ssm.{key}"] for key in _SSM)
    if values % keys or inner % values:
        raise ValueError(f"ssm.time_step_rank is {values}, for ssm.group_count {keys} and ssm.inner_size {inner}")
    return keys, values // keys, size, inner // values


def _gguf_log_rate(x: np.ndarray) -> np.ndarray:
    """The logarithms of the rates at which states decay, which are stored as their negatives."""
    if not (x < 0).all():
        raise ValueError("a state would not decay: its rates must be below zero")
    return np.log(-x.astype(np.float64)).astype(x.dtype)


def _gguf_sections(settings: Mapping[str, Any]) -> list[int]:
    """The pairs that turn by the position in time, in height, in width, and by none."""
    pairs = int(settings["head_dim"] * settings["rope_parameters"]["partial_rotary_factor"]) // 2
    return [(pairs + 2) // 3, (pairs + 1) // 3, pairs // 3, 0]


_SSM = ("group_count", "time_step_rank", "state_size", "inner_size")
_LAYER, _DELTA = "model.layers.*", "model.layers.*.linear_attn"
_GGUF = gguf.Gguf(
    architecture="qwen35",
    names=gguf.named(
        {
            "blk.*.ffn_norm": None, "blk.*.post_attention_norm": f"{_LAYER}.post_attention_layernorm",
            "blk.*.ssm_norm": f"{_DELTA}.norm", **gguf.FURTHER_TOKEN,
        }
    ),
    # Heads of values that share a head of keys are not side by side: the first of each, the second of each, ...
    rows=(
        ("blk.*.attn_qkv.weight", f"{_DELTA}.in_proj_qkv.weight", "(n M N K) D -> (n N M K) D"),
        ("blk.*.ssm_conv1d.weight", f"{_DELTA}.conv1d.weight", "(n M N K) J -> (n N M K) 1 J"),
        ("blk.*.attn_gate.weight", f"{_DELTA}.in_proj_z.weight", "(m N V) D -> (N m V) D"),
        ("blk.*.ssm_alpha.weight", f"{_DELTA}.in_proj_a.weight", "(m N) D -> (N m) D"),
        ("blk.*.ssm_beta.weight", f"{_DELTA}.in_proj_b.weight", "(m N) D -> (N m) D"),
        ("blk.*.ssm_a", f"{_DELTA}.A_log", "(m N) -> (N m)"),
        ("blk.*.ssm_dt.bias", f"{_DELTA}.dt_bias", "(m N) -> (N m)"),
        ("blk.*.ssm_out.weight", f"{_DELTA}.out_proj.weight", "D (m N V) -> D (N m V)"),
    ),
    axes={
        "N": lambda own: _gguf_heads(own)[0], "m": lambda own: _gguf_heads(own)[1],
        "M": lambda own: (1, 1, _gguf_heads(own)[1]), "V": lambda own: _gguf_heads(own)[3],
        "K": lambda own: (own["ssm.state_size"], own["ssm.state_size"], _gguf_heads(own)[3]),
    },
    changes=(
        ("ssm_norm.weight", None), *gguf.NORMS,
        ("ssm_a", gguf.Change(lambda x: -np.exp(x), _gguf_log_rate)),
    ),
    keys={
        "ssm.conv_kernel": "linear_conv_kernel_dim", "ssm.state_size": "linear_key_head_dim",
        "ssm.group_count": "linear_num_key_heads", "ssm.time_step_rank": "linear_num_value_heads",
        "full_attention_interval": "full_attention_interval",
        **dict.fromkeys(("ssm.inner_size", "rope.dimension_sections", "nextn_predict_layers")),
    },
    defaults={
        "ssm.inner_size": lambda settings: settings["linear_value_head_dim"] * settings["linear_num_value_heads"],
        "rope.dimension_sections": _gguf_sections,
    },
    derived={
        "num_hidden_layers": gguf.num_layers,
        "linear_value_head_dim": lambda own, shapes: _gguf_heads(own)[3],
    },
)  # fmt: skip


PUBLISHED = dataclasses.replace(
    llama_layout.published(
        model_type="qwen3_5_text",
        class_prefix="Qwen3_5",
        gguf=_GGUF,
        classes={"base": "TextModel", "sequence-classification": "TextForSequenceClassification"},
        tasks=("causal-lm", "sequence-classification"),
        config={
            **_CONFIG,
            "rope": _rope(_CONFIG["rope"]),
            "num_kv_heads": Key("num_key_value_heads", 4),
            "head_dim": Key("head_dim", 256),
            "attention_bias": Key("attention_bias", False),
            "full_every": Key("full_attention_interval", 4, _full_every),
            "num_delta_key_heads": Key("linear_num_key_heads", 16),
            "num_delta_value_heads": Key("linear_num_value_heads", 32),
            "delta_key_dim": Key("linear_key_head_dim", 128),
            "delta_value_dim": Key("linear_value_head_dim", 128),
            "conv_size": Key("linear_conv_kernel_dim", 4),
        },
        defaults={"layer_types": None, "partial_rotary_factor": 0.25},
        derived={"layer_types": _layer_types},
    ),
    nested={"qwen3_5": {}},
    renamed_classes={
        "Qwen3_5Model": "Qwen3_5TextModel",
        "Qwen3_5ForConditionalGeneration": "Qwen3_5ForCausalLM",
        "Qwen3_5ForSequenceClassification": "Qwen3_5TextForSequenceClassification",
    },
    other_prefixes=("model.language_model.",),
    body=_body,
    ignored=((r"visual\..*", "the model of images"),),
    unread=_further_token,
)
