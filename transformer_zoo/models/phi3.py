"""Phi-3 Technical Report, Abdin et al. 2024; Phi-4 (Abdin et al. 2024) and Phi-4-mini (Abouelenin et al. 2025)."""

import dataclasses

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`.

    Raises:
        ValueError: as `RotaryConfig`, or rotary positions of a kind that its config.json has not.
    """

    vocab_size: int = 32064
    max_length: int = 4096
    width: int = 3072
    head_dim: int = 96
    mlp_dim: int = 8192
    norm_epsilon: float = 1e-5
    residual_dropout: float = 0.0
    head_dropout: float = 0.1  # of token classification
    window: int | None = None  # of every layer
    eos_id: int | None = 32000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rope.kind not in ("default", "longrope"):
            raise ValueError(f"rope has the kind {self.rope.kind}: Phi-3 has only default and longrope")


_14B = {"width": 5120, "num_layers": 40, "num_heads": 40, "num_kv_heads": 10, "head_dim": 128, "mlp_dim": 17920}
_LONG_FACTORS = (
    1.0, 1.118320672, 1.250641126, 1.398617824, 1.564103225, 1.74916897, 1.956131817, 2.187582649, 2.446418898,
    2.735880826, 3.059592084, 3.421605075, 3.826451687, 4.279200023, 4.785517845, 5.351743533, 5.984965424,
    6.693110555, 7.485043894, 8.370679318, 9.36110372, 10.4687158, 11.70738129, 13.09260651, 14.64173252,
    16.37415215, 18.31155283, 20.47818807, 22.90118105, 25.61086418, 28.64115884, 32.03, 32.1, 32.13, 32.23, 32.6,
    32.61, 32.64, 32.66, 32.7, 32.71, 32.93, 32.97, 33.28, 33.49, 33.5, 44.16, 47.77,
)  # fmt: skip
_LONGER = Rope(
    kind="longrope", share=0.75, factor=32.0, original_length=4096, short_factors=(1.0,) * 48,
    long_factors=_LONG_FACTORS,
)  # fmt: skip
PRESETS = {
    "phi-3-mini-4k": ("microsoft/Phi-3-mini-4k-instruct", Config(window=2047)),
    "phi-3-medium-4k": ("microsoft/Phi-3-medium-4k-instruct", Config(**_14B, window=2047)),
    "phi-4": (
        "microsoft/phi-4",
        Config(**_14B, vocab_size=100352, max_length=16384, rope=Rope(theta=250000.0), eos_id=100265),
    ),
    "phi-4-mini": (
        "microsoft/Phi-4-mini-instruct",
        Config(
            vocab_size=200064, max_length=131072, num_heads=24, num_kv_heads=8, head_dim=128, window=262144,
            rope=_LONGER, tied=True, eos_id=199999,
        ),
    ),
}  # fmt: skip


class Model(RotaryDecoder):
    """Phi-3 with the head of a task."""


PUBLISHED = llama_layout.published(
    model_type="phi3",
    class_prefix="Phi3",
    gguf=gguf.Gguf(
        architecture="phi3",
        has_factors=True,
        names=gguf.named(
            {
                "blk.*.attn_qkv": "model.layers.*.self_attn.qkv_proj",
                "blk.*.ffn_up": "model.layers.*.mlp.gate_up_proj",
                **dict.fromkeys(("blk.*.attn_q", "blk.*.attn_k", "blk.*.attn_v", "blk.*.ffn_gate")),
            }
        ),
    ),  # fmt: skip
    config={
        **llama_layout.config(Rope, eos_id=32000, longest=4096),
        "norm_epsilon": Key("rms_norm_eps", 1e-5),
        "residual_dropout": Key("resid_pdrop", 0.0),
        "window": Key("sliding_window", None),
    },
    # Read beside the settings of rotary positions, before them.
    defaults={"original_max_position_embeddings": 4096, "pad_token_id": 32000},
    derived={"original_max_position_embeddings": lambda config: config.rope.original_length or config.max_length},
    fixed={"embd_pdrop": 0.0},
    qkv=(("layers.*.self_attn.qkv_proj.weight", "blocks/attention/{query,key,value}/kernel", "(n H K) D -> n D H K"),),
    mlp=(
        ("layers.*.mlp.gate_up_proj.weight", "blocks/{mlp_gate,mlp_up}/kernel", "(n F) D -> n D F"),
        *rows.dense("layers.*.mlp.down_proj", "blocks/mlp_down"),
    ),
)
