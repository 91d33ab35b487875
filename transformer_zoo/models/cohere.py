"""Command R, Command R+ and Aya (Aryabumi et al. 2024; Dang et al. 2024); and PaLM (Chowdhery et al. 2022), whose block
is the same."""

import dataclasses
import functools
from typing import Any

from transformer_zoo.nn.cohere_decoder import CohereBlock, CohereConfig, CohereDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import Key, cohere_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CohereConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.cohere_decoder.CohereConfig`."""

    max_length: int = 8192
    rope: Rope = Rope(interleaved=True)
    query_key_norm: bool = False  # of each head, with scales of its own
    logit_scale: float = 0.125


def _rope(theta: float) -> Rope:
    return Rope(theta=theta, interleaved=True)


def _palm(width: int, num_layers: int, num_heads: int) -> Config:
    """A model of table 1, in which all heads share one key and value, and logits are divided by the root of the width
    (sections 2 and 5). Its initial parameters are not the paper's: the embeddings' variance was 1."""
    return Config(
        max_length=2048, width=width, num_layers=num_layers, num_heads=num_heads, num_kv_heads=1, head_dim=256,
        mlp_dim=4 * width, logit_scale=width**-0.5, eos_id=None,
    )  # fmt: skip


_35B = {"max_length": 131072, "width": 8192, "num_layers": 40, "num_heads": 64, "logit_scale": 0.0625}
PRESETS = {
    "aya-23-8b": ("CohereLabs/aya-23-8B", Config(logit_scale=0.0625)),
    "aya-expanse-8b": ("CohereLabs/aya-expanse-8b", Config()),
    "command-r": (
        "CohereLabs/c4ai-command-r-v01", Config(**_35B, num_kv_heads=64, mlp_dim=22528, rope=_rope(8000000.0)),
    ),
    "command-r-08": ("CohereLabs/c4ai-command-r-08-2024", Config(**_35B, mlp_dim=24576, rope=_rope(4000000.0))),
    "command-r-plus": (
        "CohereLabs/c4ai-command-r-plus",
        Config(
            max_length=131072, width=12288, num_layers=64, num_heads=96, mlp_dim=33792, rope=_rope(75000000.0),
            query_key_norm=True, logit_scale=0.8333333333333334,
        ),
    ),
    "palm-8b": ("", _palm(4096, 32, 16)),
    "palm-62b": ("", _palm(8192, 64, 32)),
    "palm-540b": ("", _palm(18432, 118, 48)),
}  # fmt: skip


class Block(CohereBlock):
    """With norms of queries and keys where the Config has them."""

    def attention_settings(self) -> dict[str, Any]:
        norm = functools.partial(self.norm, feature_axes=(-2, -1), reduction_axes=-1)
        return super().attention_settings() | {"query_key_norm": norm if self.config.query_key_norm else None}


class Model(CohereDecoder):
    """Cohere with the head of a task."""

    block: Any = Block


PUBLISHED = cohere_layout.published(
    model_type="cohere",
    class_prefix="Cohere",
    gguf=cohere_layout.gguf_layout(
        "command-r",
        derived={
            "use_qk_norm": lambda own, shapes: "blk.0.attn_q_norm.weight" in shapes,
        },
    ),
    config={
        **cohere_layout.config(functools.partial(Rope, interleaved=True)),
        "query_key_norm": Key("use_qk_norm", False),
    },
    body=(
        ("layers.*.self_attn.q_norm.weight", "blocks/attention/query_norm/scale", "H K -> H K"),
        ("layers.*.self_attn.k_norm.weight", "blocks/attention/key_norm/scale", "H K -> H K"),
    ),
)
