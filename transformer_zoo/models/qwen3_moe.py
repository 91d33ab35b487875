"""Qwen3's mixtures of experts (Yang et al. 2025, section 2)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transformer_zoo.nn.experts_decoder import ExpertsBlock, ExpertsConfig, ExpertsDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import Key, experts_layout, gguf, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ExpertsConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.experts_decoder.ExpertsConfig`."""

    vocab_size: int = 151936
    max_length: int = 32768
    width: int = 2048
    num_layers: int = 48
    num_kv_heads: int = 4
    mlp_dim: int = 768
    num_experts: int = 128
    num_chosen: int = 8
    normalised: bool = True  # the weights of a token's experts add up to 1
    rope: Rope = Rope(theta=1000000.0)
    attention_bias: bool = False
    head_dropout: float = 0.1  # of token classification
    window: int | None = None  # of every layer
    eos_id: int | None = 151643


PRESETS = {
    "qwen3-30b-a3b-base": ("Qwen/Qwen3-30B-A3B-Base", Config()),
    "qwen3-235b-a22b": (
        "Qwen/Qwen3-235B-A22B",
        Config(max_length=40960, width=4096, num_layers=94, num_heads=64, mlp_dim=1536, eos_id=151645),
    ),
}


class Block(ExpertsBlock):
    """With a norm of each query and key, over the elements of a head."""

    def attention_settings(self) -> dict[str, Any]:
        return {"use_bias": self.config.attention_bias, "query_key_norm": self.norm}

    def experts_settings(self) -> dict[str, Any]:
        return {"normalised": self.config.normalised}


class Model(ExpertsDecoder):
    """Qwen3 with mixtures of experts and the head of a task."""

    block: Any = Block


def _num_experts(number: Any, settings: Mapping[str, Any]) -> Any:
    """Today's files of the reference have another key."""
    return settings["num_local_experts"] if number is None else number


def _window(length: Any, settings: Mapping[str, Any]) -> Any:
    return length if settings["use_sliding_window"] else None


PUBLISHED = llama_layout.published(
    model_type="qwen3_moe",
    class_prefix="Qwen3Moe",
    tasks=llama_layout.WITH_ANSWERS,
    prefixes=llama_layout.OLD_PREFIX,
    gguf=gguf.Gguf(
        architecture="qwen3moe",
        names=gguf.named(gguf.experts("model.layers.*.mlp", "gate_proj up_proj down_proj")),
        keys=gguf.EXPERTS | {"expert_feed_forward_length": "moe_intermediate_size", "expert_count": "num_experts"},
        derived={"norm_topk_prob": lambda own, shapes: True},
    ),
    config={
        **llama_layout.config(Rope, eos_id=None, longest=32768),
        "num_kv_heads": Key("num_key_value_heads", 4),
        "mlp_dim": Key("moe_intermediate_size", 768),
        "normalised": Key("norm_topk_prob", False),
        "attention_bias": Key("attention_bias", False),
        "window": Key("sliding_window", 4096, _window),
        **experts_layout.config(Key("num_experts", None, _num_experts), 8),
    },
    defaults={"num_local_experts": 128, "use_sliding_window": False},
    derived={"use_sliding_window": lambda config: config.window is not None},
    fixed={"decoder_sparse_step": 1, "mlp_only_layers": []},  # layers without experts
    body=(
        *experts_layout.body("layers.*.mlp", "gate_proj up_proj down_proj"),
        *rows.norm("layers.*.self_attn.q_norm", "blocks/attention/query_norm"),
        *rows.norm("layers.*.self_attn.k_norm", "blocks/attention/key_norm"),
    ),
)
