"""Command A: An Enterprise-Ready Large Language Model, Team Cohere 2025; and Command R7B."""

import dataclasses
import functools

import numpy as np

from transformer_zoo.nn.cohere_decoder import CohereConfig, CohereDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import Key, cohere_layout, layer_types

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CohereConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.cohere_decoder.CohereConfig`."""

    window: int = 4096
    global_every: int = (
        4  # layers n-1, 2n-1, ... attend to all tokens before, without positions; the others, to a window
    )

    def rotated_layers(self) -> np.ndarray:
        return self.local_layers()


PRESETS = {
    "command-r7b": ("CohereLabs/c4ai-command-r7b-12-2024", Config()),
    "command-a": (
        "CohereLabs/c4ai-command-a-03-2025",
        Config(max_length=131072, width=12288, num_layers=64, num_heads=96, mlp_dim=36864),
    ),
}


class Model(CohereDecoder):
    """Cohere 2 with the head of a task."""


PUBLISHED = cohere_layout.published(
    model_type="cohere2",
    class_prefix="Cohere2",
    gguf=cohere_layout.gguf_layout("cohere2"),
    config={
        **cohere_layout.config(functools.partial(Rope, interleaved=True)),
        "window": Key("sliding_window", 4096),
        "global_every": layer_types.alternating(4),
    },
    **layer_types.ALTERNATING,
)
