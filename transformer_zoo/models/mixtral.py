"""Mixtral of Experts, Jiang et al. 2024."""

import dataclasses

from transformer_zoo.nn.experts_decoder import ExpertsConfig, ExpertsDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import Key, experts_layout, gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(ExpertsConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.experts_decoder.ExpertsConfig`."""

    max_length: int = 32768
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(theta=1000000.0)
    head_dropout: float = 0.1  # of token classification
    window: int | None = None  # of every layer


PRESETS = {
    "mixtral-8x7b": ("mistralai/Mixtral-8x7B-v0.1", Config(balance_weight=0.02)),
    "mixtral-8x22b": (
        "mistralai/Mixtral-8x22B-v0.1",
        Config(max_length=65536, width=6144, num_layers=56, num_heads=48, mlp_dim=16384),
    ),
}


class Model(ExpertsDecoder):
    """Mixtral with the head of a task."""


PUBLISHED = llama_layout.published(
    model_type="mixtral",
    class_prefix="Mixtral",
    tasks=llama_layout.WITH_ANSWERS,
    gguf=gguf.Gguf(
        architecture="llama",
        only_with="expert_count",
        names=gguf.named(gguf.experts("model.layers.*.block_sparse_moe", "w1 w3 w2")),
        rows=gguf.PAIRS,
        keys=gguf.EXPERTS | {"expert_feed_forward_length": None, "feed_forward_length": "intermediate_size"},
    ),
    config={
        **llama_layout.config(Rope, eos_id=2, longest=131072, theta=1000000.0),
        "num_kv_heads": Key("num_key_value_heads", 8),
        "norm_epsilon": Key("rms_norm_eps", 1e-5),
        "window": Key("sliding_window", None),
        **experts_layout.config(Key("num_local_experts", 8), 2),
    },
    fixed={"router_jitter_noise": 0.0},
    body=experts_layout.body("layers.*.block_sparse_moe", "w1 w3 w2"),
)
