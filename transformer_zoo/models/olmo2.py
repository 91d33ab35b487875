"""2 OLMo 2 Furious, Team OLMo 2024 (OLMo 2)."""

import dataclasses
from typing import Any

from transformer_zoo.nn.olmo_decoder import OlmoBlock, OlmoConfig
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryDecoder, init_cache
from transformer_zoo.published import Gguf, olmo_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OlmoConfig):
    """The architecture: what a checkpoint fixes. The fields are those of `nn.olmo_decoder.OlmoConfig`."""


PRESETS = {
    "olmo-2-1b": (
        "allenai/OLMo-2-0425-1B",
        Config(width=2048, num_layers=16, num_heads=16, num_kv_heads=16, mlp_dim=8192),
    ),
    "olmo-2-7b": ("allenai/OLMo-2-1124-7B", Config()),
    "olmo-2-13b": (
        "allenai/OLMo-2-1124-13B",
        Config(width=5120, num_layers=40, num_heads=40, num_kv_heads=40, mlp_dim=13824),
    ),
    "olmo-2-32b": (
        "allenai/OLMo-2-0325-32B",
        Config(width=5120, num_layers=64, num_heads=40, num_kv_heads=8, mlp_dim=27648),
    ),
}


class Model(RotaryDecoder):
    """OLMo 2 with the head of a task."""

    block: Any = OlmoBlock


PUBLISHED = olmo_layout.published(
    model_type="olmo2",
    class_prefix="Olmo2",
    gguf=Gguf(architecture="olmo2", names=olmo_layout.GGUF_NAMES),
    config=olmo_layout.config(Rope),
)
