"""Qwen3 Technical Report, Yang et al. 2025."""

import dataclasses
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LateWindowConfig, RotaryBlock, RotaryDecoder, init_cache
from transformer_zoo.published import Gguf, Key, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LateWindowConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.rotary_decoder.LateWindowConfig`."""

    num_kv_heads: int = 8
    attention_bias: bool = False


_TIED = {"tied": True, "global_layers": 28}
PRESETS = {
    "qwen3-0.6b-base": (
        "Qwen/Qwen3-0.6B-Base", Config(width=1024, num_layers=28, num_heads=16, mlp_dim=3072, **_TIED),
    ),
    "qwen3-1.7b-base": (
        "Qwen/Qwen3-1.7B-Base", Config(width=2048, num_layers=28, num_heads=16, mlp_dim=6144, **_TIED),
    ),
    "qwen3-4b-base": (
        "Qwen/Qwen3-4B-Base", Config(width=2560, num_layers=36, mlp_dim=9728, tied=True, global_layers=36),
    ),
    "qwen3-8b-base": ("Qwen/Qwen3-8B-Base", Config(num_layers=36, mlp_dim=12288, global_layers=36)),
    "qwen3-14b-base": (
        "Qwen/Qwen3-14B-Base", Config(width=5120, num_layers=40, num_heads=40, mlp_dim=17408, global_layers=40),
    ),
}  # fmt: skip


class Block(RotaryBlock):
    """With a norm of each query and key, over the elements of a head (section 2)."""

    def attention_settings(self) -> dict[str, Any]:
        return super().attention_settings() | {"query_key_norm": self.norm}


class Model(RotaryDecoder):
    """Qwen3 with the head of a task."""

    block: Any = Block


PUBLISHED = llama_layout.published(
    model_type="qwen3",
    class_prefix="Qwen3",
    tasks=llama_layout.WITH_ANSWERS,
    prefixes=llama_layout.OLD_PREFIX,
    gguf=Gguf(architecture="qwen3"),
    config={
        **llama_layout.config(Rope, eos_id=None, longest=32768),
        "head_dim": Key("head_dim", 128),
        "attention_bias": Key("attention_bias", False),
        **llama_layout.windows(4096),
    },
    **llama_layout.WINDOWS,
    body=(
        *rows.norm("layers.*.self_attn.q_norm", "blocks/attention/query_norm"),
        *rows.norm("layers.*.self_attn.k_norm", "blocks/attention/key_norm"),
    ),
)
