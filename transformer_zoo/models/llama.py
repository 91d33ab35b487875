"""LLaMA: Open and Efficient Foundation Language Models, Touvron et al. 2023; Llama 2 (Touvron et al. 2023) and Llama 3
(Dubey et al. 2024); and models of its layout, such as Vicuna (Chiang et al. 2023), Yi (01.AI 2024), DeepSeek-Coder (Guo
et al. 2024), TinyLlama (Zhang et al. 2024) and SmolLM2 (Allal et al. 2025)."""

import dataclasses

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import RotaryConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, gguf, llama_layout

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(RotaryConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.RotaryConfig`."""

    attention_bias: bool = False
    head_dropout: float = 0.1  # of token classification
    mlp_bias: bool = False


_13B = {"width": 5120, "num_layers": 40, "num_heads": 40, "num_kv_heads": 40, "mlp_dim": 13824}
_70B = {"width": 8192, "num_layers": 80, "num_heads": 64, "num_kv_heads": 8, "mlp_dim": 28672}
_LLAMA_2 = {"max_length": 4096, "norm_epsilon": 1e-5}
_LLAMA_3 = {
    "vocab_size": 128256, "max_length": 8192, "num_kv_heads": 8, "mlp_dim": 14336, "norm_epsilon": 1e-5,
    "rope": Rope(theta=500000.0), "eos_id": 128001,
}  # fmt: skip
_LONGER = {"kind": "llama3", "theta": 500000.0, "original_length": 8192}
_LLAMA_31 = _LLAMA_3 | {"max_length": 131072, "rope": Rope(factor=8.0, **_LONGER)}
_LLAMA_32 = _LLAMA_31 | {"rope": Rope(factor=32.0, **_LONGER), "mlp_dim": 8192, "tied": True}
_YI = {"vocab_size": 64000, "max_length": 4096, "norm_epsilon": 1e-5, "rope": Rope(theta=5000000.0)}
_CODER = {
    "vocab_size": 32256, "max_length": 16384, "rope": Rope(kind="linear", factor=4.0, theta=100000.0), "eos_id": 32014,
}  # fmt: skip
_TINY = {"width": 2048, "num_layers": 22, "num_kv_heads": 4, "head_dim": 64, "mlp_dim": 5632, "norm_epsilon": 1e-5}
_SMOL = {"vocab_size": 49152, "max_length": 8192, "head_dim": 64, "norm_epsilon": 1e-5, "tied": True, "eos_id": 0}
_SMOL_ROPE = Rope(theta=100000.0)
PRESETS = {
    "llama-7b": ("huggyllama/llama-7b", Config()),
    "llama-13b": ("huggyllama/llama-13b", Config(**_13B)),
    "llama-65b": ("huggyllama/llama-65b", Config(**_70B | {"num_kv_heads": 64, "mlp_dim": 22016}, norm_epsilon=1e-5)),
    "llama-2-7b": ("meta-llama/Llama-2-7b-hf", Config(**_LLAMA_2)),
    "llama-2-13b": ("meta-llama/Llama-2-13b-hf", Config(**_13B, **_LLAMA_2)),
    "llama-2-70b": ("meta-llama/Llama-2-70b-hf", Config(**_70B, **_LLAMA_2)),
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B", Config(**_LLAMA_3)),
    "llama-3-70b": ("meta-llama/Meta-Llama-3-70B", Config(**_LLAMA_3 | _70B)),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", Config(**_LLAMA_31)),
    "llama-3.1-70b": ("meta-llama/Llama-3.1-70B", Config(**_LLAMA_31 | _70B)),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", Config(**_LLAMA_32, width=2048, num_layers=16, head_dim=64)),
    "llama-3.2-3b": (
        "meta-llama/Llama-3.2-3B", Config(**_LLAMA_32, width=3072, num_layers=28, num_heads=24),
    ),
    "vicuna-7b-v1.5": ("lmsys/vicuna-7b-v1.5", Config(**_LLAMA_2)),
    "vicuna-13b-v1.5": ("lmsys/vicuna-13b-v1.5", Config(**_13B, **_LLAMA_2)),
    "yi-6b": ("01-ai/Yi-6B", Config(**_YI, num_kv_heads=4)),
    "yi-34b": (
        "01-ai/Yi-34B",
        Config(**_YI, width=7168, num_layers=60, num_heads=56, num_kv_heads=8, mlp_dim=20480),
    ),
    "deepseek-coder-1.3b": (
        "deepseek-ai/deepseek-coder-1.3b-base",
        Config(**_CODER, width=2048, num_layers=24, num_heads=16, num_kv_heads=16, mlp_dim=5504),
    ),
    "deepseek-coder-6.7b": ("deepseek-ai/deepseek-coder-6.7b-base", Config(**_CODER)),
    "tinyllama-1.1b": ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", Config(**_TINY)),
    "tinyllama-1.1b-chat": ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", Config(**_TINY)),
    "smollm2-135m": (
        "HuggingFaceTB/SmolLM2-135M",
        Config(**_SMOL, rope=_SMOL_ROPE, width=576, num_layers=30, num_heads=9, num_kv_heads=3, mlp_dim=1536),
    ),
    "smollm2-360m": (
        "HuggingFaceTB/SmolLM2-360M",
        Config(**_SMOL, rope=_SMOL_ROPE, width=960, num_heads=15, num_kv_heads=5, mlp_dim=2560),
    ),
    "smollm2-1.7b": (
        "HuggingFaceTB/SmolLM2-1.7B",
        Config(**_SMOL, rope=Rope(theta=130000.0), width=2048, num_layers=24, mlp_dim=8192),
    ),
}  # fmt: skip


class Model(RotaryDecoder):
    """LLaMA with the head of a task."""


PUBLISHED = llama_layout.published(
    model_type="llama",
    class_prefix="Llama",
    tasks=llama_layout.WITH_ANSWERS,
    prefixes=llama_layout.OLD_PREFIX,
    # Files of mixtures are Mixtral's.
    gguf=gguf.Gguf(architecture="llama", rows=gguf.PAIRS, keys=dict.fromkeys(("expert_count", "expert_used_count"))),
    config={
        **llama_layout.config(Rope, eos_id=2, longest=2048),
        "attention_bias": Key("attention_bias", False),
        "mlp_bias": Key("mlp_bias", False),
    },
)
