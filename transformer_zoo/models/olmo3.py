"""Olmo 3, Team Olmo 2025: OLMo 2 with a window in most layers."""

import dataclasses
from typing import Any

from transformer_zoo.nn.olmo_decoder import OlmoBlock, OlmoConfig
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, layer_types, olmo_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(OlmoConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.olmo_decoder.OlmoConfig`."""

    vocab_size: int = 100278
    max_length: int = 65536
    # Of the layers without a window.
    rope: Rope = Rope(
        theta=500000.0, kind="yarn", factor=8.0, original_length=8192, fast_turns=32.0,
        attention_factor=1.2079441541679836,
    )  # fmt: skip
    local_theta: float = 500000.0  # of those with one
    window: int = 4096
    global_every: int = 4  # layers n-1, 2n-1, ... attend to all tokens before; the others, to a window


PRESETS = {
    "olmo-3-7b": ("allenai/Olmo-3-1025-7B", Config()),
    "olmo-3-32b": (
        "allenai/Olmo-3-1125-32B",
        Config(width=5120, num_layers=64, num_heads=40, num_kv_heads=8, mlp_dim=27648),
    ),
}


class Model(RotaryDecoder):
    """Olmo 3 with the head of a task."""

    block: Any = OlmoBlock


PUBLISHED = olmo_layout.published(
    model_type="olmo3",
    class_prefix="Olmo3",
    gguf=gguf.Gguf(
        architecture="olmo2",
        only_with="attention.sliding_window",
        names=olmo_layout.GGUF_NAMES,
        keys=gguf.PATTERN,
        local_theta=0.0,
    ),
    config={
        **olmo_layout.config(Rope, theta=500000.0, local_theta=500000.0, local_name="rope_theta"),
        "window": Key("sliding_window", 4096),
        "global_every": layer_types.alternating(4),
    },
    **layer_types.ALTERNATING,
)
