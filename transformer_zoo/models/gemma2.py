"""Gemma 2: Improving Open Language Models at a Practical Size, Gemma Team 2024."""

import dataclasses
from typing import Any

from transformer_zoo.nn.checks import check_range
from transformer_zoo.nn.gemma_decoder import AlternatingBlock, AlternatingConfig, AlternatingDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import Key, gemma_layout, gguf

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AlternatingConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.AlternatingConfig`.

    Raises:
        ValueError: as `AlternatingConfig`.
    """

    head_dropout: float = 0.1  # of token classification
    score_cap: float | None = 50.0  # attention scores are pressed into (-cap, cap)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score_cap is not None:
            check_range(self, "score_cap", above=0)


_9B = {"width": 3584, "num_layers": 42, "num_heads": 16, "num_kv_heads": 8, "mlp_dim": 14336}
_27B = {
    "width": 4608, "num_layers": 46, "num_heads": 32, "num_kv_heads": 16, "head_dim": 128, "mlp_dim": 36864,
    "score_dim": 144,
}  # fmt: skip
PRESETS = {
    "gemma-2-2b": ("google/gemma-2-2b", Config()),
    "gemma-2-9b": ("google/gemma-2-9b", Config(**_9B)),
    "gemma-2-27b": ("google/gemma-2-27b", Config(**_27B)),
}


class Block(AlternatingBlock):
    """With a soft cap of the attention scores (section 2)."""

    def attention_settings(self) -> dict[str, Any]:
        return super().attention_settings() | {"score_cap": self.config.score_cap}


class Model(AlternatingDecoder):
    """Gemma 2 with the head of a task."""

    block: Any = Block


PUBLISHED = gemma_layout.published(
    model_type="gemma2",
    class_prefix="Gemma2",
    gguf=gguf.Gguf(
        architecture="gemma2",
        names={theirs: ours for theirs, ours in gemma_layout.GGUF_NAMES.items() if theirs != "output"},
        keys=gguf.PATTERN
        | {"attn_logit_softcapping": "attn_logit_softcapping", "final_logit_softcapping": "final_logit_softcapping"},
        derived={"query_pre_attn_scalar": gemma_layout.gguf_score_dim(largest=46)},
        changes=gguf.NORMS,
    ),
    config={
        **gemma_layout.config(Rope, longest=8192, every=2, logit_cap=30.0),
        "score_cap": Key("attn_logit_softcapping", 50.0),
    },
)
