"""SmolLM3, Bakouch et al. 2025: LLaMA with layers that have no positions (Yang et al. 2025, "Rope to Nope and Back
Again")."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, RotaryDecoder, every_nth, init_cache
from transformer_zoo.published import Key, gguf, layer_types, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`."""

    vocab_size: int = 128256
    max_length: int = 65536
    width: int = 2048
    num_layers: int = 36
    num_heads: int = 16
    num_kv_heads: int = 4
    rope: Rope = Rope(theta=5000000.0)
    attention_bias: bool = False
    mlp_bias: bool = False
    head_dropout: float = 0.1  # of token classification
    unrotated_every: int = 4  # layers n-1, 2n-1, ... have no positions
    window: int | None = None  # of these layers
    tied: bool = True
    eos_id: int | None = 128001

    def rotated_layers(self) -> np.ndarray:
        return ~every_nth(self.unrotated_every, self.num_layers)

    def local_layers(self) -> np.ndarray:
        return super().local_layers() & ~self.rotated_layers()


PRESETS = {
    "smollm3-3b": ("HuggingFaceTB/SmolLM3-3B", Config(eos_id=128012)),
    "smollm3-3b-base": ("HuggingFaceTB/SmolLM3-3B-Base", Config()),
}


class Model(RotaryDecoder):
    """SmolLM3 with the head of a task."""


def _rotated(every: int, layers: int) -> list[int]:
    return [int(i % every != 0) for i in range(1, layers + 1)]


def _unrotated_every(number: int, settings: Mapping[str, Any]) -> int:
    """From the number, or from the list of the layers with positions, which takes precedence."""
    layers, listed = settings["num_hidden_layers"], settings["no_rope_layers"]
    if listed is None:
        return number
    n = layer_types.number_for(listed[:layers], number, lambda n: _rotated(n, layers))
    if n is None:
        raise ValueError(f"no_rope_layers is {listed}: of the num_hidden_layers, every nth must be 0, and the others 1")
    return n


def _window(length: int | None, settings: Mapping[str, Any]) -> int | None:
    """The length, if the list of the layers' kinds, or else a switch, asks for windows."""
    kinds, every = settings["layer_types"], _unrotated_every(settings["no_rope_layer_interval"], settings)
    sliding, full = layer_types.KINDS
    if kinds is None or sliding not in kinds:
        return length if kinds is None and settings["use_sliding_window"] else None
    if kinds != [full if rotated else sliding for rotated in _rotated(every, settings["num_hidden_layers"])]:
        raise ValueError(f"layer_types must be {sliding} of the layers without positions, and {full} of the others")
    return length


PUBLISHED = llama_layout.published(
    model_type="smollm3",
    class_prefix="SmolLM3",
    tasks=llama_layout.WITH_ANSWERS,
    prefixes=llama_layout.OLD_PREFIX,
    gguf=gguf.Gguf(architecture="smollm3", rows=gguf.PAIRS),
    config={
        **llama_layout.config(Rope, eos_id=128001, longest=32768, theta=2000000.0),
        "num_kv_heads": Key("num_key_value_heads", 4),
        "attention_bias": Key("attention_bias", False),
        "mlp_bias": Key("mlp_bias", False),
        "unrotated_every": Key("no_rope_layer_interval", 4, _unrotated_every),
        "window": Key("sliding_window", None, _window),
        "tied": Key("tie_word_embeddings", True),
    },
    defaults={"no_rope_layers": None, "layer_types": None, "use_sliding_window": False, "pad_token_id": 128004},
    derived={
        "no_rope_layers": lambda config: _rotated(config.unrotated_every, config.num_layers),
        "layer_types": lambda config: [layer_types.KINDS[not local] for local in config.local_layers()],
        "use_sliding_window": lambda config: config.window is not None,
    },
)
