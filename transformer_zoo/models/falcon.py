"""The Falcon Series of Open Language Models, Almazrouei et al. 2023; Falcon2-11B (Malartic et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo.nn import Mask, alibi
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import LayerNormBlock, MultiHeadConfig, RotaryDecoder, init_cache
from transformer_zoo.published import Key, Published, gguf, llama_layout, rope, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MultiHeadConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.MultiHeadConfig`.

    Raises:
        ValueError: as `MultiHeadConfig`, or settings that its files have no keys for.
    """

    vocab_size: int = 65024
    width: int = 4544
    num_heads: int = 71
    num_kv_heads: int = 1
    mlp_dim: int = 18176
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    rope: Rope = Rope()
    bias: bool = False
    parallel: bool = True  # attention and MLP read the same input
    two_norms: bool = False  # of a parallel block; one for both otherwise
    head_dropout: float = 0.0  # of token classification
    tied: bool = True
    eos_id: int | None = 11
    alibi: bool = False  # in the place of rotary positions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.is_new and not self.parallel:
            raise ValueError("parallel=False goes with 1 or num_heads heads of keys and values, and without two_norms")

    @property
    def is_new(self) -> bool:
        """Whether it is of the second architecture, that of the models from 40B on."""
        return self.two_norms or self.num_kv_heads not in (1, self.num_heads)

    @property
    def steady_length(self) -> int | None:
        return None if self.alibi else super().steady_length

    @property
    def attention_bias(self) -> bool:
        return self.bias

    @property
    def mlp_bias(self) -> bool:
        return self.bias


PRESETS = {
    "falcon-7b": ("tiiuae/falcon-7b", Config()),
    "falcon-40b": (
        "tiiuae/falcon-40b",
        Config(num_kv_heads=8, two_norms=True, width=8192, num_layers=60, num_heads=128, mlp_dim=32768),
    ),
    "falcon-180b": (
        "tiiuae/falcon-180B",
        Config(num_kv_heads=8, two_norms=True, width=14848, num_layers=80, num_heads=232, mlp_dim=59392),
    ),
    "falcon-11b": (
        "tiiuae/falcon-11B",
        Config(
            num_kv_heads=8, max_length=8192, width=4096, num_layers=60, num_heads=32, mlp_dim=16384,
            rope=Rope(theta=5000042.0), tied=False,
        ),
    ),
    "falcon-rw-1b": (
        "tiiuae/falcon-rw-1b",
        Config(
            vocab_size=50304, width=2048, num_layers=24, num_heads=32, num_kv_heads=32, mlp_dim=8192, bias=True,
            parallel=False, eos_id=2, alibi=True,
        ),
    ),
}  # fmt: skip


class Block(LayerNormBlock):
    """x + attention(norm(x)) + mlp(norm(x)), with one norm for both or one for each; and with ALiBi or rotations."""

    @property
    def parallel(self) -> bool:
        return self.config.parallel

    @property
    def shares_norm(self) -> bool:
        return self.config.parallel and not self.config.two_norms

    def attend(
        self, h_BTD: jax.Array, kv: Any, mask: Mask, start: Any, rotation: Any, train: bool, bias: Any = None
    ) -> tuple[jax.Array, Any]:
        if self.config.alibi:
            cfg, (positions_BT, rotation) = self.config, (rotation, None)
            # Of a cache, whose keys have no positions here, the real ones are counted.
            keys_BS = positions_BT if mask.ahead_BTS is None else jnp.cumsum(mask.valid_BS, axis=1) - 1
            bias = alibi.narrow_bias(keys_BS, cfg.num_heads, self.compute.accumulation_dtype) * cfg.head_dim**-0.5
        return super().attend(h_BTD, kv, mask, start, rotation, train, bias)


class Model(RotaryDecoder):
    """Falcon with the head of a task."""

    block: Any = Block

    @property
    def counts_positions(self) -> bool:
        return self.config.alibi

    def shared(self, positions_BT: jax.Array) -> tuple[Any, ...]:
        return (positions_BT,) if self.config.alibi else super().shared(positions_BT)


def _body(config: Config) -> rows.Rows:
    # One tensor holds, group by group, heads of queries and their key and value.
    fused, ours = "h.*.self_attention.query_key_value", "blocks/attention/{query,key,value}"
    groups = f"G={config.num_kv_heads}"
    attention_norm, mlp_norm = (
        ("ln_attn", "ln_mlp") if config.two_norms else ("input_layernorm", "post_attention_layernorm")
    )
    return (
        *rows.embedding("word_embeddings", "token_embed", "V"),
        *rows.norm(f"h.*.{attention_norm}", "blocks/attention_norm"),
        (f"{fused}.weight", f"{ours}/kernel", f"({groups} n Q K) D -> n D (G Q) K"),
        (f"{fused}.bias", f"{ours}/bias", f"({groups} n Q K) -> n (G Q) K"),
        *rows.merge_heads("h.*.self_attention.dense", "blocks/attention/out"),
        *rows.norm(f"h.*.{mlp_norm}", "blocks/mlp_norm"),
        *rows.dense("h.*.mlp.dense_h_to_4h", "blocks/mlp_up"),
        *rows.dense("h.*.mlp.dense_4h_to_h", "blocks/mlp_down"),
        *rows.norm("ln_f", "final_norm"),
    )


def _num_kv_heads(number: Any, settings: Mapping[str, Any]) -> Any:
    heads = settings["num_attention_heads"]
    if settings["new_decoder_architecture"]:
        return heads if number is None else number
    return 1 if settings["multi_query"] else heads


def _two_norms(number: Any, settings: Mapping[str, Any]) -> bool:
    if number not in (None, 1, 2):
        raise ValueError("known are 1 and 2")
    return number == 2 or (number is None and settings["new_decoder_architecture"])


def _gguf_queries(own: Mapping[str, Any]) -> tuple[int, int, int]:
    """Of a GGUF file, the heads of queries that share one of keys, that one, and the one of values."""
    return own["attention.head_count"] // own["attention.head_count_kv"], 1, 1


def _gguf_is_new(own: Mapping[str, Any], shapes: Any) -> bool:
    return _GGUF_NORM in shapes or own.get("attention.head_count_kv") not in (1, own.get("attention.head_count"))


_LAYER, _GGUF_NORM = "transformer.h.*", "blk.0.attn_norm_2.weight"
PUBLISHED = Published(
    model_type="falcon",
    class_prefix="Falcon",
    gguf=gguf.Gguf(
        architecture="falcon",
        names={
            "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head",
            "blk.*.attn_norm": f"{_LAYER}.input_layernorm", "blk.*.attn_output": f"{_LAYER}.self_attention.dense",
            "blk.*.ffn_up": f"{_LAYER}.mlp.dense_h_to_4h", "blk.*.ffn_down": f"{_LAYER}.mlp.dense_4h_to_h",
        },
        names_with={_GGUF_NORM: {"blk.*.attn_norm": f"{_LAYER}.ln_mlp", "blk.*.attn_norm_2": f"{_LAYER}.ln_attn"}},
        rows=tuple(
            (f"blk.*.attn_qkv.{end}", f"{_LAYER}.self_attention.query_key_value.{end}",
             f"(n G Q K){axes} -> (G n Q K){axes}") for end, axes in (("weight", " D"), ("bias", ""))
        ),
        axes={"Q": _gguf_queries, "K": gguf.Gguf.head_dim},
        keys={
            "attention.head_count_kv": "num_kv_heads", "feed_forward_length": "ffn_hidden_size",
            "attention.layer_norm_epsilon": "layer_norm_epsilon", "tensor_data_layout": None,
        },
        derived={
            "multi_query": lambda own, shapes: own.get("attention.head_count_kv") == 1,
            "new_decoder_architecture": _gguf_is_new,
            "num_ln_in_parallel_attn": lambda own, shapes: 1 + (_GGUF_NORM in shapes),
            "bias": lambda own, shapes: "blk.0.attn_qkv.bias" in shapes,
        },
    ),
    config={
        **llama_layout.multi_head_config(Rope, eos_id=11, longest=2048),
        "num_kv_heads": Key("num_kv_heads", None, _num_kv_heads),
        "mlp_dim": Key(
            "ffn_hidden_size", None, lambda size, settings: 4 * settings["hidden_size"] if size is None else size
        ),
        "activation": Key("activation", "gelu"),
        "norm_epsilon": Key("layer_norm_epsilon", 1e-5),
        "bias": Key("bias", False),
        "parallel": Key(
            "parallel_attn", True, lambda parallel, settings: parallel or settings["new_decoder_architecture"]
        ),
        "two_norms": Key("num_ln_in_parallel_attn", None, _two_norms, lambda two, config: 1 + two),
        "head_dropout": Key("classifier_dropout", None, lambda rate, settings: 0.0 if rate is None else rate),
        "tied": Key("tie_word_embeddings", True),
        "alibi": Key("alibi", False),
    },
    # Dropout would be of other places than attention's weights and each sublayer's output.
    fixed={"hidden_dropout": 0.0, "attention_dropout": 0.0},
    defaults=rope.DEFAULTS | {"multi_query": True, "new_decoder_architecture": False},
    derived={
        "multi_query": lambda config: config.num_kv_heads == 1,
        "new_decoder_architecture": lambda config: config.is_new,
    },
    prefix="transformer.",
    body=_body,
    heads=llama_layout.HEADS | rows.ANSWERS | {"token-classification": rows.dense("classifier", "head/scores")},
    tied={"lm_head.weight": "word_embeddings.weight"},
)  # fmt: skip
