"""Gemma 3 Technical Report, Gemma Team 2025: the models of text."""

import dataclasses
from typing import Any

from transformer_zoo.nn.gemma_decoder import AlternatingBlock, AlternatingConfig, AlternatingDecoder
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import init_cache
from transformer_zoo.published import gemma_layout, gguf, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(AlternatingConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.AlternatingConfig`."""

    vocab_size: int = 262208
    max_length: int = 131072
    rope: Rope = Rope(theta=1000000.0)  # of the layers without a window
    local_theta: float = 10000.0  # of those with one
    global_every: int = 6
    logit_cap: float | None = None


_SMALL = {"vocab_size": 262144, "max_length": 32768, "num_heads": 4, "num_kv_heads": 1, "window": 512}
PRESETS = {
    "gemma-3-270m": ("google/gemma-3-270m", Config(**_SMALL, width=640, num_layers=18, mlp_dim=2048)),
    "gemma-3-1b": ("google/gemma-3-1b-pt", Config(**_SMALL, width=1152, mlp_dim=6912)),
}


class Block(AlternatingBlock):
    """With a norm of each query and key (section 2)."""

    def attention_settings(self) -> dict[str, Any]:
        return super().attention_settings() | {"query_key_norm": self.norm}


class Model(AlternatingDecoder):
    """Gemma 3 with the head of a task."""

    block: Any = Block


PUBLISHED = gemma_layout.published(
    model_type="gemma3_text",
    class_prefix="Gemma3",
    gguf=gguf.Gguf(
        architecture="gemma3",
        names=gemma_layout.GGUF_NAMES,
        keys=gguf.PATTERN | {"final_logit_softcapping": "final_logit_softcapping"},
        derived={"query_pre_attn_scalar": gemma_layout.gguf_score_dim(largest=62)},
        changes=gguf.NORMS,
        local_theta=10000.0,
    ),
    classes={"base": "TextModel", "sequence-classification": "TextForSequenceClassification"},
    tasks=("causal-lm", "sequence-classification"),
    config=gemma_layout.config(
        Rope, longest=131072, every=6, logit_cap=None, theta=1000000.0, local_theta=10000.0
    ),
    fixed={"attn_logit_softcapping": None},
    body=(
        *rows.norm("layers.*.self_attn.q_norm", "blocks/attention/query_norm"),
        *rows.norm("layers.*.self_attn.k_norm", "blocks/attention/key_norm"),
    ),
)  # fmt: skip
