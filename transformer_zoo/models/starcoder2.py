"""StarCoder 2 and The Stack v2: The Next Generation, Lozhkov et al. 2024."""

import dataclasses
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LayerNormBlock, RotaryConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`."""

    vocab_size: int = 49152
    max_length: int = 16384
    width: int = 4608
    num_heads: int = 36
    num_kv_heads: int = 4
    mlp_dim: int = 18432
    activation: str = "gelu_pytorch_tanh"
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(theta=1000000.0)
    bias: bool = True  # of every layer but the output layer
    window: int | None = 4096
    init_std: float = 0.018042
    embed_dropout: float = 0.1
    attention_dropout: float = 0.1
    residual_dropout: float = 0.1
    head_dropout: float = 0.1  # of token classification
    tied: bool = True
    eos_id: int | None = 0

    @property
    def attention_bias(self) -> bool:
        return self.bias

    @property
    def mlp_bias(self) -> bool:
        return self.bias


_3B = {
    "width": 3072, "num_layers": 30, "num_heads": 24, "num_kv_heads": 2, "mlp_dim": 12288,
    "init_std": 0.018042195912175805,
}  # fmt: skip
_15B = {"width": 6144, "num_layers": 40, "num_heads": 48, "mlp_dim": 24576, "init_std": 0.01275}
PRESETS = {
    "starcoder2-3b": ("bigcode/starcoder2-3b", Config(**_3B, rope=Rope(theta=999999.4420358813))),
    "starcoder2-7b": ("bigcode/starcoder2-7b", Config()),
    "starcoder2-15b": ("bigcode/starcoder2-15b", Config(**_15B, rope=Rope(theta=100000.0), tied=False)),
}


class Model(RotaryDecoder):
    """StarCoder2 with the head of a task."""

    block: Any = LayerNormBlock


PUBLISHED = llama_layout.published(
    model_type="starcoder2",
    class_prefix="Starcoder2",
    gguf=gguf.Gguf(
        architecture="starcoder2",
        names=gguf.named(
            {
                "blk.*.ffn_gate": None,
                "blk.*.ffn_up": "model.layers.*.mlp.c_fc",
                "blk.*.ffn_down": "model.layers.*.mlp.c_proj",
            }
        ),
        keys={"attention.layer_norm_epsilon": "norm_epsilon"},
        derived={"use_bias": lambda own, shapes: "blk.0.attn_q.bias" in shapes},
    ),  # fmt: skip
    config={
        **llama_layout.config(Rope, eos_id=50256, longest=4096),
        "num_kv_heads": Key("num_key_value_heads", 2),
        "activation": Key("hidden_act", "gelu_pytorch_tanh"),
        "norm_epsilon": Key("norm_epsilon", 1e-5),
        "bias": Key("use_bias", True),
        "window": Key("sliding_window", None),
        "init_std": Key("initializer_range", 0.018042),
        "embed_dropout": Key("embedding_dropout", 0.0),
        "residual_dropout": Key("residual_dropout", 0.0),
        "tied": Key("tie_word_embeddings", True),
    },
    mlp=rows.dense("layers.*.mlp.c_fc", "blocks/mlp_up") + rows.dense("layers.*.mlp.c_proj", "blocks/mlp_down"),
)
