"""Qwen2 Technical Report, Yang et al. 2024; and Qwen2.5 (Yang et al. 2024)."""

import dataclasses
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LateWindowConfig, RotaryBlock, RotaryDecoder, init_cache
from transformer_zoo.published import Gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(LateWindowConfig):
    """The architecture: what a checkpoint fixes. The fields are those of `nn.rotary_decoder.LateWindowConfig`."""


_HALF_B = {"width": 896, "num_layers": 24, "num_heads": 14, "num_kv_heads": 2, "head_dim": 64, "mlp_dim": 4864}
_1_5B = {"width": 1536, "num_layers": 28, "num_heads": 12, "num_kv_heads": 2, "mlp_dim": 8960}
_7B = {"vocab_size": 152064, "width": 3584, "num_layers": 28, "num_heads": 28, "num_kv_heads": 4, "mlp_dim": 18944}
_72B = {
    "vocab_size": 152064, "width": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 8, "norm_epsilon": 1e-5,
}  # fmt: skip
_SMALL = {"tied": True, "max_length": 131072}
PRESETS = {
    "qwen2-0.5b": ("Qwen/Qwen2-0.5B", Config(**_HALF_B | _SMALL, global_layers=24)),
    "qwen2-1.5b": ("Qwen/Qwen2-1.5B", Config(**_1_5B | _SMALL)),
    "qwen2-7b": ("Qwen/Qwen2-7B", Config(**_7B, max_length=131072)),
    "qwen2-72b": ("Qwen/Qwen2-72B", Config(**_72B, mlp_dim=29568, max_length=131072, global_layers=80)),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B", Config(**_HALF_B, tied=True, global_layers=24)),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B", Config(**_1_5B | _SMALL)),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B", Config(**_7B, max_length=131072)),
}


class Block(RotaryBlock):
    """With biases of queries, keys and values (section 2.2.1)."""

    def attention_settings(self) -> dict[str, Any]:
        return {"out_bias": False}


class Model(RotaryDecoder):
    """Qwen2 with the head of a task."""

    block: Any = Block


PUBLISHED = llama_layout.published(
    model_type="qwen2",
    class_prefix="Qwen2",
    tasks=llama_layout.WITH_ANSWERS,
    prefixes=llama_layout.OLD_PREFIX,
    gguf=Gguf(architecture="qwen2"),
    config={**llama_layout.config(Rope, eos_id=None, longest=32768), **llama_layout.windows(4096)},
    **llama_layout.WINDOWS,
)
