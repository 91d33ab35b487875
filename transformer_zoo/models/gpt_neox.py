"""GPT-NeoX-20B: An Open-Source Autoregressive Language Model, Black et al. 2022; Pythia (Biderman et al. 2023)."""

import dataclasses
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LayerNormBlock, MultiHeadConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, Published, gguf, llama_layout, rope, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MultiHeadConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.MultiHeadConfig`. The defaults are
    those of Pythia's 6.9B model."""

    vocab_size: int = 50432
    mlp_dim: int = 16384
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(share=0.25)
    parallel: bool = True  # attention and MLP read the same input (section 2.1.2)
    attention_bias: bool = True
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0  # of the embeddings too
    head_dropout: float = 0.1  # of token classification
    eos_id: int | None = 0

    mlp_bias = True

    @property
    def embed_dropout(self) -> float:
        return self.residual_dropout


_20B = {"width": 6144, "num_layers": 44, "num_heads": 64, "mlp_dim": 24576, "activation": "gelu_fast"}


def _pythia(width: int, num_layers: int, num_heads: int, vocab_size: int = 50304) -> Config:
    return Config(
        width=width, num_layers=num_layers, num_heads=num_heads, mlp_dim=4 * width, vocab_size=vocab_size
    )  # fmt: skip


PRESETS = {
    "pythia-70m": ("EleutherAI/pythia-70m", _pythia(512, 6, 8)),
    "pythia-160m": ("EleutherAI/pythia-160m", _pythia(768, 12, 12)),
    "pythia-410m": ("EleutherAI/pythia-410m", _pythia(1024, 24, 16)),
    "pythia-1b": ("EleutherAI/pythia-1b", _pythia(2048, 16, 8)),
    "pythia-1.4b": ("EleutherAI/pythia-1.4b", _pythia(2048, 24, 16)),
    "pythia-2.8b": ("EleutherAI/pythia-2.8b", _pythia(2560, 32, 32)),
    "pythia-6.9b": ("EleutherAI/pythia-6.9b", Config()),
    "pythia-12b": ("EleutherAI/pythia-12b", _pythia(5120, 36, 40, vocab_size=50688)),
    "gpt-neox-20b": ("EleutherAI/gpt-neox-20b", Config(**_20B)),
}


class Block(LayerNormBlock):
    """x + attention(norm(x)) + mlp(norm(x)), with a norm for each."""

    @property
    def parallel(self) -> bool:
        return self.config.parallel


class Model(RotaryDecoder):
    """GPT-NeoX with the head of a task."""

    block: Any = Block


_ATTENTION = "layers.*.attention"
PUBLISHED = Published(
    model_type="gpt_neox",
    class_prefix="GPTNeoX",
    gguf=gguf.Gguf(
        architecture="gptneox",
        names={
            "token_embd": "gpt_neox.embed_in",
            "output_norm": "gpt_neox.final_layer_norm",
            "output": "embed_out",
            "blk.*.attn_norm": "gpt_neox.layers.*.input_layernorm",
            "blk.*.ffn_norm": "gpt_neox.layers.*.post_attention_layernorm",
            "blk.*.attn_output": f"gpt_neox.{_ATTENTION}.dense",
            "blk.*.ffn_up": "gpt_neox.layers.*.mlp.dense_h_to_4h",
            "blk.*.ffn_down": "gpt_neox.layers.*.mlp.dense_4h_to_h",
        },
        rows=gguf.qkv(f"gpt_neox.{_ATTENTION}.query_key_value"),
        keys={
            "attention.layer_norm_epsilon": "layer_norm_eps",
            "use_parallel_residual": "use_parallel_residual",
        },
        derived={"attention_bias": lambda own, shapes: "blk.0.attn_qkv.bias" in shapes},
    ),  # fmt: skip
    config={
        **llama_layout.multi_head_config(
            Rope, eos_id=2, longest=2048, share=0.25, old_names=("rotary_emb_base", "rotary_pct")
        ),
        "activation": Key("hidden_act", "gelu"),
        "norm_epsilon": Key("layer_norm_eps", 1e-5),
        "parallel": Key("use_parallel_residual", True),
        "attention_bias": Key("attention_bias", True),
        "attention_dropout": Key("attention_dropout", 0.0),
        "residual_dropout": Key("hidden_dropout", 0.0),
        "head_dropout": Key("classifier_dropout", 0.1),
    },
    defaults=rope.DEFAULTS,
    prefix="gpt_neox.",
    body=(
        *rows.embedding("embed_in", "token_embed", "V"),
        *rows.norm("layers.*.input_layernorm", "blocks/attention_norm"),
        (f"{_ATTENTION}.query_key_value.weight", "blocks/attention/{query,key,value}/kernel", "(H n K) D -> n D H K"),
        (f"{_ATTENTION}.query_key_value.bias", "blocks/attention/{query,key,value}/bias", "(H n K) -> n H K"),
        *rows.merge_heads(f"{_ATTENTION}.dense", "blocks/attention/out"),
        *rows.norm("layers.*.post_attention_layernorm", "blocks/mlp_norm"),
        *rows.dense("layers.*.mlp.dense_h_to_4h", "blocks/mlp_up"),
        *rows.dense("layers.*.mlp.dense_4h_to_h", "blocks/mlp_down"),
        *rows.norm("final_layer_norm", "final_norm"),
    ),
    heads=rows.HEADS
    | rows.ANSWERS
    | {
        "causal-lm": rows.embedding("embed_out", "head", "V"),
        "token-classification": rows.dense("classifier", "head/scores"),
    },
    tied={"embed_out.weight": "embed_in.weight", "lm_head.weight": "/embed_out.weight"},
    ignored=(
        (r"layers\.\d+\.attention\.(masked_)?bias", "the causal mask, which old versions saved as a buffer"),
        (r"layers\.\d+\.attention\.rotary_emb\.inv_freq", "frequencies, which old files hold as a buffer"),
    ),
)
