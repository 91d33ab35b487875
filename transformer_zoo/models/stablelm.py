"""StableLM 3B 4E1T, Tow et al. 2023; Stable LM 2 1.6B Technical Report, Bellagente et al. 2024."""

import dataclasses
import functools
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LayerNormBlock, MultiHeadConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MultiHeadConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.MultiHeadConfig`."""

    vocab_size: int = 50304
    max_length: int = 4096
    width: int = 2560
    num_kv_heads: int = 32
    mlp_dim: int = 6912
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(share=0.25)
    attention_bias: bool = False  # of queries, keys and values
    query_key_norm: bool = False  # each head has a scale of its own
    parallel: bool = False  # attention and MLP read the same input, by one norm
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0  # of the MLP
    head_dropout: float = 0.0  # of token classification
    eos_id: int | None = 0


_2 = {"vocab_size": 100352, "eos_id": 100257}
_12B = {
    "width": 5120, "num_layers": 40, "num_kv_heads": 8, "mlp_dim": 13824, "query_key_norm": True, "parallel": True,
}  # fmt: skip
PRESETS = {
    "stablelm-3b-4e1t": ("stabilityai/stablelm-3b-4e1t", Config()),
    "stablelm-2-1.6b": (
        "stabilityai/stablelm-2-1_6b", Config(**_2, width=2048, num_layers=24, mlp_dim=5632, attention_bias=True),
    ),
    "stablelm-2-12b": ("stabilityai/stablelm-2-12b", Config(**_2, **_12B)),
}  # fmt: skip


class Block(LayerNormBlock):
    """With a gated MLP."""

    gated = True

    @property
    def parallel(self) -> bool:
        return self.config.parallel

    @property
    def shares_norm(self) -> bool:
        return self.config.parallel

    def attention_settings(self) -> dict[str, Any]:
        by_head = functools.partial(self.norm, use_bias=False, feature_axes=(-2, -1))
        return super().attention_settings() | {
            "out_bias": False, "query_key_norm": by_head if self.config.query_key_norm else None,
        }  # fmt: skip

    def dropout(self, name: str) -> float:
        return self.config.residual_dropout if name == "mlp" else 0.0


class Model(RotaryDecoder):
    """StableLM with the head of a task."""

    block: Any = Block


def _head_norm(theirs: str, ours: str) -> rows.Rows:
    """The scales of the heads' norms, which are stacked as layers are."""
    return ((f"layers.*.self_attn.{theirs}.norms.*.weight", f"blocks/attention/{ours}/scale", "K -> K"),)


PUBLISHED = llama_layout.published(
    model_type="stablelm",
    class_prefix="StableLm",
    gguf=gguf.Gguf(
        architecture="stablelm",
        names=gguf.named(
            {
                "blk.*.attn_q_norm": "model.layers.*.self_attn.q_layernorm.norms.*",
                "blk.*.attn_k_norm": "model.layers.*.self_attn.k_layernorm.norms.*",
            }
        ),
        keys={
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        derived={
            "use_qkv_bias": lambda own, shapes: "blk.0.attn_q.bias" in shapes,
            "qk_layernorm": lambda own, shapes: "blk.0.attn_q_norm.weight" in shapes,
        },
    ),  # fmt: skip
    config={
        **llama_layout.multi_head_config(Rope, eos_id=0, longest=4096, share=0.25),
        "num_kv_heads": Key("num_key_value_heads", 32),
        "norm_epsilon": Key("layer_norm_eps", 1e-5),
        "attention_bias": Key("use_qkv_bias", False),
        "query_key_norm": Key("qk_layernorm", False),
        "parallel": Key("use_parallel_residual", False),
        "attention_dropout": Key("attention_dropout", 0.0),
        "residual_dropout": Key("hidden_dropout", 0.0),
        "head_dropout": Key(
            "classifier_dropout", None, lambda rate, settings: settings["hidden_dropout"] if rate is None else rate
        ),
    },
    body=_head_norm("q_layernorm", "query_norm") + _head_norm("k_layernorm", "key_norm"),
)
