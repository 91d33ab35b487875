"""GPT-2: Language Models are Unsupervised Multitask Learners, Radford et al. 2019."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Mask
from transformer_zoo.nn.gpt_decoder import GptBlock, GptConfig, GptDecoder, init_cache
from transformer_zoo.published import Key, Published, first_id, gguf, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(GptConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.gpt_decoder.GptConfig`."""

    scale_attention: bool = True  # by 1/sqrt(K)
    scale_attention_by_layer: bool = False  # also by 1/layer, from 1 (Mistral's GPT-2, Karamcheti et al. 2021)
    tied: bool = True  # the output layer is the table of token embeddings
    eos_id: int | None = 50256
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json


PRESETS = {
    "gpt2": ("openai-community/gpt2", Config()),
    "gpt2-medium": ("openai-community/gpt2-medium", Config(width=1024, num_layers=24, num_heads=16)),
    "gpt2-large": ("openai-community/gpt2-large", Config(width=1280, num_layers=36, num_heads=20)),
    "gpt2-xl": ("openai-community/gpt2-xl", Config(width=1600, num_layers=48, num_heads=25)),
    "distilgpt2": ("distilbert/distilgpt2", Config(num_layers=6)),
}


class Block(GptBlock):
    """With a factor of the attention scores that may differ by layer."""

    def scores(self, mask: Mask, own: jax.Array, *shared: Any) -> dict[str, Any]:
        return {"mask": mask, "scale": own}


class Model(GptDecoder):
    """GPT-2 with the head of a task."""

    block: Any = Block

    def per_layer(self) -> jax.Array:
        """The factor of each layer's attention scores, [L]."""
        cfg = self.config
        scale = (cfg.width // cfg.num_heads) ** -0.5 if cfg.scale_attention else 1.0
        layer_L = np.arange(1, cfg.num_layers + 1) if cfg.scale_attention_by_layer else np.ones(cfg.num_layers)
        return jnp.asarray(scale / layer_L)


PUBLISHED = Published(
    model_type="gpt2",
    class_prefix="GPT2",
    gguf=gguf.Gguf(
        architecture="gpt2",
        names={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "blk.*.attn_norm": "transformer.h.*.ln_1",
            "blk.*.ffn_norm": "transformer.h.*.ln_2",
            "blk.*.attn_qkv": "transformer.h.*.attn.c_attn",
            "blk.*.attn_output": "transformer.h.*.attn.c_proj",
            "blk.*.ffn_up": "transformer.h.*.mlp.c_fc",
            "blk.*.ffn_down": "transformer.h.*.mlp.c_proj",
        },
        rows=tuple(
            (f"blk.*.{theirs}.weight", f"transformer.h.*.{ours}.weight", "O I -> I O")
            for theirs, ours in (
                ("attn_qkv", "attn.c_attn"),
                ("attn_output", "attn.c_proj"),
                ("ffn_up", "mlp.c_fc"),
                ("ffn_down", "mlp.c_proj"),
            )
        ),
        keys={
            "block_count": "n_layer",
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "attention.head_count": "n_head",
            "feed_forward_length": "n_inner",
            "attention.layer_norm_epsilon": "layer_norm_epsilon",
        },
        defaults={"feed_forward_length": lambda settings: 4 * settings["n_embd"]},
    ),  # fmt: skip
    classes={"causal-lm": "LMHeadModel"},
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("n_positions"),
        "width": Key("n_embd"),
        "num_layers": Key("n_layer"),
        "num_heads": Key("n_head"),
        "mlp_dim": Key("n_inner", None),
        "activation": Key("activation_function", "gelu_new"),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "init_std": Key("initializer_range", 0.02),
        "embed_dropout": Key("embd_pdrop", 0.1),
        "attention_dropout": Key("attn_pdrop", 0.1),
        "residual_dropout": Key("resid_pdrop", 0.1),
        "scale_attention": Key("scale_attn_weights", True),
        "scale_attention_by_layer": Key("scale_attn_by_inverse_layer_idx", False),
        "tied": Key("tie_word_embeddings", True),
        "eos_id": Key("eos_token_id", 50256, first_id),
        "problem": Key("problem_type", None),
    },
    fixed={"add_cross_attention": False},
    prefix="transformer.",
    body=(
        *rows.embedding("wte", "token_embed", "V"),
        *rows.embedding("wpe", "position_embed"),
        *rows.norm("h.*.ln_1", "blocks/attention_norm"),
        *rows.attention_conv1d("h.*.attn", "blocks/attention"),
        *rows.norm("h.*.ln_2", "blocks/mlp_norm"),
        *rows.conv1d("h.*.mlp.c_fc", "blocks/mlp_up"),
        *rows.conv1d("h.*.mlp.c_proj", "blocks/mlp_down"),
        *rows.norm("ln_f", "final_norm"),
    ),
    heads=rows.HEADS | rows.ANSWERS,
    tied={"lm_head.weight": "wte.weight"},
    ignored=((r"h\.\d+\.attn\.(masked_)?bias", "the causal mask, which old versions saved as a buffer"),),
)
