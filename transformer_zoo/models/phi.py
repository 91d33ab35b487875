"""Phi: Textbooks Are All You Need, Gunasekar et al. 2023, and II, Li et al. 2023; Phi-2 (Javaheripi et al. 2023)."""

import dataclasses
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LayerNormBlock, MultiHeadConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, Published, gguf, llama_layout, rope, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MultiHeadConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.MultiHeadConfig`."""

    vocab_size: int = 51200
    width: int = 2048
    num_layers: int = 24
    num_kv_heads: int = 32
    mlp_dim: int = 8192
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    rope: Rope = Rope(share=0.5)
    query_key_norm: bool = False
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    head_dropout: float = 0.1  # of token classification
    eos_id: int | None = 50256

    attention_bias = True
    mlp_bias = True
    logits_bias = True


_2 = {"width": 2560, "num_layers": 32, "mlp_dim": 10240, "rope": Rope(share=0.4), "residual_dropout": 0.1}
PRESETS = {
    "phi-1": ("microsoft/phi-1", Config()),
    "phi-1.5": ("microsoft/phi-1_5", Config()),
    "phi-2": ("microsoft/phi-2", Config(**_2)),
}


class Block(LayerNormBlock):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both."""

    parallel = True
    shares_norm = True

    def attention_settings(self) -> dict[str, Any]:
        return super().attention_settings() | {"query_key_norm": self.norm if self.config.query_key_norm else None}


class Model(RotaryDecoder):
    """Phi with the head of a task."""

    block: Any = Block


_ATTENTION = "layers.*.self_attn"
PUBLISHED = Published(
    model_type="phi",
    class_prefix="Phi",
    gguf=gguf.Gguf(
        architecture="phi2",
        names=gguf.named(
            {
                **dict.fromkeys(("blk.*.attn_q_norm", "blk.*.attn_k_norm", "blk.*.ffn_norm", "blk.*.ffn_gate")),
                "blk.*.attn_output": f"model.{_ATTENTION}.dense",
                "output_norm": "model.final_layernorm",
                "blk.*.ffn_up": "model.layers.*.mlp.fc1",
                "blk.*.ffn_down": "model.layers.*.mlp.fc2",
            }
        ),
        keys={"attention.layer_norm_epsilon": "layer_norm_eps"},
    ),  # fmt: skip
    config={
        **llama_layout.multi_head_config(Rope, eos_id=2, longest=2048, share=0.5),
        "num_kv_heads": llama_layout.KV_HEADS,
        "activation": Key("hidden_act", "gelu_new"),
        "norm_epsilon": Key("layer_norm_eps", 1e-5),
        "query_key_norm": Key("qk_layernorm", False),
        "embed_dropout": Key("embd_pdrop", 0.0),
        "attention_dropout": Key("attention_dropout", 0.0),
        "residual_dropout": Key("resid_pdrop", 0.0),
        "head_dropout": Key("classifier_dropout", 0.1),
    },
    defaults=rope.DEFAULTS,
    prefix="model.",
    body=(
        *rows.embedding("embed_tokens", "token_embed", "V"),
        *rows.norm("layers.*.input_layernorm", "blocks/attention_norm"),
        *rows.attention(_ATTENTION, "blocks/attention", "q_proj k_proj v_proj", f"{_ATTENTION}.dense"),
        *rows.norm(f"{_ATTENTION}.q_layernorm", "blocks/attention/query_norm"),
        *rows.norm(f"{_ATTENTION}.k_layernorm", "blocks/attention/key_norm"),
        *rows.dense("layers.*.mlp.fc1", "blocks/mlp_up"),
        *rows.dense("layers.*.mlp.fc2", "blocks/mlp_down"),
        *rows.norm("final_layernorm", "final_norm"),
    ),
    heads=llama_layout.HEADS | {"causal-lm": llama_layout.BIASED_LM_HEAD},
    tied={"lm_head.weight": "embed_tokens.weight"},
    ignored=((r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "frequencies, which old files hold as a buffer"),),
)
