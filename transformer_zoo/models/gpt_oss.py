"""gpt-oss-120b and gpt-oss-20b Model Card, OpenAI 2025, section 2."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from transformer_zoo.nn.experts_decoder import ExpertsBlock, ExpertsConfig, ExpertsDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import Key, experts_layout, gguf, layer_types, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ExpertsConfig):
    """The architecture: what a checkpoint fixes. The defaults are those of the 20B model. The other fields are those of
    `nn.experts_decoder.ExpertsConfig`."""

    vocab_size: int = 201088
    max_length: int = 131072
    width: int = 2880
    num_layers: int = 24
    num_heads: int = 64
    head_dim: int = 64
    mlp_dim: int = 2880
    num_experts: int = 32
    num_chosen: int = 4
    balance_weight: float = 0.9
    activation: ClassVar[str] = "silu"  # no field
    gate_scale: float = 1.702  # x times sigmoid(gate_scale * x) is the activation
    gate_limit: float = 7.0  # it is of at most this; and the other factor, of at most this on either side of zero
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(
        kind="yarn", theta=150000.0, factor=32.0, original_length=4096, fast_turns=32.0, whole_pairs=False
    )
    attention_bias: bool = True
    head_dropout: float = 0.1  # of token classification
    window: int = 128
    global_every: int = 2  # layers n-1, 2n-1, ... attend to all tokens before; the others, to a window
    eos_id: int | None = 200002


PRESETS = {
    "gpt-oss-20b": ("openai/gpt-oss-20b", Config()),
    "gpt-oss-120b": ("openai/gpt-oss-120b", Config(num_layers=36, num_experts=128)),
}


class Block(ExpertsBlock):
    """With sinks in the attention, and a clamped activation and biases in the experts."""

    def attention_settings(self) -> dict[str, Any]:
        return {"use_bias": self.config.attention_bias, "sinks": True}

    def experts_settings(self) -> dict[str, Any]:
        return {"use_bias": True}

    def hidden(self, gate_F: jax.Array, up_F: jax.Array) -> jax.Array:
        cfg = self.config
        gate_F = jnp.minimum(gate_F, cfg.gate_limit)
        return gate_F * jax.nn.sigmoid(cfg.gate_scale * gate_F) * (jnp.clip(up_F, -cfg.gate_limit, cfg.gate_limit) + 1)


class Model(ExpertsDecoder):
    """gpt-oss with the head of a task."""

    block: Any = Block


_YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False}
_LLAMA = llama_layout.config(Rope, eos_id=None, longest=131072, theta=150000.0)
_EXPERTS = "layers.*.mlp.experts"
PUBLISHED = llama_layout.published(
    model_type="gpt_oss",
    class_prefix="GptOss",
    gguf=gguf.Gguf(
        architecture="gpt-oss",
        names=gguf.named(
            {
                "blk.*.ffn_norm": None,
                "blk.*.post_attention_norm": "model.layers.*.post_attention_layernorm",
                "blk.*.ffn_gate_inp": "model.layers.*.mlp.router",
            }
        ),
        rows=(
            ("blk.*.ffn_{gate,up}_exps.weight", f"model.{_EXPERTS}.gate_up_proj", "n E F D -> E D (F n)"),
            ("blk.*.ffn_{gate,up}_exps.bias", f"model.{_EXPERTS}.gate_up_proj_bias", "n E F -> E (F n)"),
            ("blk.*.ffn_down_exps.weight", f"model.{_EXPERTS}.down_proj", "E D F -> E F D"),
            ("blk.*.ffn_down_exps.bias", f"model.{_EXPERTS}.down_proj_bias", "E D -> E D"),
            ("blk.*.attn_sinks.weight", "model.layers.*.self_attn.sinks", "N -> N"),
        ),
        keys=gguf.EXPERTS | gguf.PATTERN,
        yarn={"truncate": False},
    ),  # fmt: skip
    config={
        **{name: key for name, key in _LLAMA.items() if name != "activation"},
        "num_kv_heads": Key("num_key_value_heads", 8),
        "head_dim": Key("head_dim", 64),
        "norm_epsilon": Key("rms_norm_eps", 1e-5),
        "gate_scale": Key("swiglu_alpha", 1.702),
        "gate_limit": Key("swiglu_limit", 7.0),
        "attention_bias": Key("attention_bias", True),
        "window": Key("sliding_window", 128),
        "global_every": layer_types.alternating(2),
        **experts_layout.config(Key("num_local_experts", 128), 4),
    },
    defaults={"rope_scaling": _YARN} | layer_types.ALTERNATING["defaults"],
    derived=layer_types.ALTERNATING["derived"],
    fixed={"hidden_act": "silu"},
    body=(
        *rows.dense("layers.*.mlp.router", "blocks/experts/router"),
        (f"{_EXPERTS}.gate_up_proj", "blocks/experts/{gate,up}/kernel", "E D (F n) -> n E D F"),
        (f"{_EXPERTS}.gate_up_proj_bias", "blocks/experts/{gate,up}/bias", "E (F n) -> n E F"),
        (f"{_EXPERTS}.down_proj", "blocks/experts/down/kernel", "E F D -> E F D"),
        (f"{_EXPERTS}.down_proj_bias", "blocks/experts/down/bias", "E D -> E D"),
        ("layers.*.self_attn.sinks", "blocks/attention/sinks", "H -> H"),
    ),
)
