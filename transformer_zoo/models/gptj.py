"""GPT-J-6B: A 6 Billion Parameter Autoregressive Language Model, Wang and Komatsuzaki 2021."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LayerNormBlock, MultiHeadConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, Published, first_id, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MultiHeadConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.MultiHeadConfig`.

    Raises:
        ValueError: as `MultiHeadConfig`, or more rotated elements than a head has.
    """

    vocab_size: int = 50400
    num_layers: int = 28
    num_heads: int = 16
    rotary_dim: int = 64  # the elements of a head that are rotated
    mlp_dim: int = 16384
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    residual_dropout: float = 0.0
    eos_id: int | None = 50256

    mlp_bias = True
    logits_bias = True

    @property
    def rope(self) -> Rope:
        if self.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim={self.rotary_dim}: a head has {self.head_dim} elements")
        # The next larger number, so that the product of head and share is no less than the whole number.
        return Rope(share=math.nextafter(self.rotary_dim / self.head_dim, 1.0), interleaved=True)


PRESETS = {"gpt-j-6b": ("EleutherAI/gpt-j-6b", Config())}


class Block(LayerNormBlock):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both."""

    parallel = True
    shares_norm = True


class Model(RotaryDecoder):
    """GPT-J with the head of a task."""

    block: Any = Block


def _mlp_dim(size: Any, settings: Mapping[str, Any]) -> Any:
    return 4 * settings["n_embd"] if size is None else size


PUBLISHED = Published(
    model_type="gptj",
    class_prefix="GPTJ",
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("n_positions", 2048),
        "width": Key("n_embd"),
        "num_layers": Key("n_layer"),
        "num_heads": Key("n_head"),
        "rotary_dim": Key("rotary_dim", 64),
        "mlp_dim": Key("n_inner", None, _mlp_dim),
        "activation": Key("activation_function", "gelu_new"),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "init_std": Key("initializer_range", 0.02),
        "embed_dropout": Key("embd_pdrop", 0.0),
        "attention_dropout": Key("attn_pdrop", 0.0),
        "residual_dropout": Key("resid_pdrop", 0.0),
        "tied": Key("tie_word_embeddings", False),
        "eos_id": Key("eos_token_id", 50256, first_id),
        "problem": Key("problem_type", None),
    },
    prefix="transformer.",
    body=(
        *rows.embedding("wte", "token_embed", "V"),
        *rows.norm("h.*.ln_1", "blocks/attention_norm"),
        *rows.attention("h.*.attn", "blocks/attention", "q_proj k_proj v_proj", "h.*.attn.out_proj"),
        *rows.dense("h.*.mlp.fc_in", "blocks/mlp_up"),
        *rows.dense("h.*.mlp.fc_out", "blocks/mlp_down"),
        *rows.norm("ln_f", "final_norm"),
    ),
    heads={
        "causal-lm": llama_layout.BIASED_LM_HEAD,
        "sequence-classification": llama_layout.HEADS["sequence-classification"],
        **rows.ANSWERS,
    },
    tied={"lm_head.weight": "wte.weight"},
    ignored=((r"h\.\d+\.attn\.(masked_)?bias", "the causal mask, which old versions saved as a buffer"),),
)
