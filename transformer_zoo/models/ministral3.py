"""Ministral 3, Mistral AI 2025: Mistral with queries that grow with their position (Meta 2025, the code released with
Llama 4). The published files hold a model of images too, whose text model this is."""

import dataclasses

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`.

    Raises:
        ValueError: as `RotaryConfig`, or queries that do not grow.
    """

    vocab_size: int = 131072
    max_length: int = 262144
    num_layers: int = 34
    num_kv_heads: int = 8
    mlp_dim: int = 14336
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(
        kind="yarn", theta=1000000.0, factor=16.0, original_length=16384, fast_turns=32.0, mscale=1.0,
        mscale_all_dim=1.0, query_growth=0.1,
    )  # fmt: skip
    head_dropout: float = 0.1  # of token classification
    window: int | None = None  # of every layer

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rope.query_growth is None:
            raise ValueError(f"rope is {self.rope}: Ministral 3 needs a query_growth, and so the kind yarn")


PRESETS = {
    "ministral-3-3b": ("", Config(width=3072, num_layers=26, mlp_dim=9216, tied=True)),
    "ministral-3-8b": ("", Config()),
}


class Model(RotaryDecoder):
    """Ministral 3 with the head of a task."""


_KEYS = llama_layout.config(Rope, eos_id=2, longest=262144)
_ROPE = {
    "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
PUBLISHED = llama_layout.published(
    model_type="ministral3",
    class_prefix="Ministral3",
    tasks=llama_layout.WITH_ANSWERS,
    gguf=gguf.Gguf(architecture="mistral3", rows=gguf.PAIRS),
    config={
        **_KEYS,
        "num_kv_heads": Key("num_key_value_heads", 8),
        "head_dim": Key("head_dim", 128),
        "norm_epsilon": Key("rms_norm_eps", 1e-5),
        "rope": dataclasses.replace(_KEYS["rope"], default=_ROPE),
        "window": Key("sliding_window", None),
    },
)
