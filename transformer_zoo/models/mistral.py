"""Mistral 7B, Jiang et al. 2023."""

import dataclasses

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`."""

    max_length: int = 32768
    num_kv_heads: int = 8
    mlp_dim: int = 14336
    norm_epsilon: float = 1e-5
    head_dropout: float = 0.1  # of token classification
    window: int | None = 4096  # of every layer (section 2)


_V3 = {"vocab_size": 32768, "rope": Rope(theta=1000000.0), "window": None}
PRESETS = {
    "mistral-7b": ("mistralai/Mistral-7B-v0.1", Config()),
    "mistral-7b-v0.3": ("mistralai/Mistral-7B-v0.3", Config(**_V3)),
    "mistral-nemo-12b": (
        "mistralai/Mistral-Nemo-Base-2407",
        Config(**_V3 | {"vocab_size": 131072}, max_length=131072, width=5120, num_layers=40),
    ),
}


class Model(RotaryDecoder):
    """Mistral with the head of a task."""


PUBLISHED = llama_layout.published(
    model_type="mistral",
    class_prefix="Mistral",
    tasks=llama_layout.WITH_ANSWERS,
    # Its files are LLaMA's, and are read so: they have no window.
    gguf=gguf.Gguf(
        architecture="llama",
        rows=gguf.PAIRS,
        keys={"attention.sliding_window": None},
        derived={"sliding_window": lambda own, shapes: None},
    ),
    config={
        **llama_layout.config(Rope, eos_id=2, longest=131072),
        "num_kv_heads": Key("num_key_value_heads", 8),
        "window": Key("sliding_window", 4096),
    },
)
