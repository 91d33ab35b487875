"""DeepSeek-V3 Technical Report, DeepSeek-AI 2024: latent attention, and experts that sigmoids choose."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import check_slots
from transformer_zoo.nn.experts import Experts, Sigmoid
from transformer_zoo.nn.latent_attention import LatentAttention
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.nn.rotary_decoder import MultiHeadConfig, RotaryBlock, RotaryDecoder
from transformer_zoo.nn.stack import stack
from transformer_zoo.published import Key, experts_layout, gguf, llama_layout, rows

__all__ = ["PRESETS", "PUBLISHED", "Config", "Model", "init_cache"]

LATENT_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(MultiHeadConfig):
    """The architecture: what a checkpoint fixes. The other fields are those of `nn.rotary_decoder.MultiHeadConfig`.

    Raises:
        ValueError: as `MultiHeadConfig`, groups that do not divide the experts or have less than two of them, more
            groups for a token than there are, or more experts for a token than its groups have.
    """

    vocab_size: int = 129280
    max_length: int = 163840
    width: int = 7168
    num_layers: int = 61
    num_dense_layers: int = 3  # the first ones, with an MLP; the others have experts
    num_heads: int = 128
    head_dim: int = 128  # of queries and keys, the elements without positions
    rope_dim: int = 64  # those with
    value_dim: int = 128
    latent_dim: int = 512
    query_rank: int | None = 1536
    mlp_dim: int = 18432
    expert_dim: int = 2048
    num_shared: int = 1  # experts of every token, which are one MLP of their widths together
    num_experts: int = 256
    num_chosen: int = 8  # experts of a token
    num_expert_groups: int = 8
    num_chosen_groups: int = 4  # groups of a token
    normalised: bool = True  # the weights of a token's experts add up to expert_scale
    expert_scale: float = 2.5
    balance_weight: float = 0.0001  # of the load-balancing loss in training
    rope: Rope = Rope(
        kind="yarn", factor=40.0, original_length=4096, fast_turns=32.0, mscale=1.0, mscale_all_dim=1.0,
        interleaved=True,
    )  # fmt: skip
    attention_bias: bool = False
    attention_dropout: float = 0.0
    head_dropout: float = 0.1  # of token classification
    eos_id: int | None = 1

    can_be_zero = ("num_dense_layers",)

    def __post_init__(self) -> None:
        super().__post_init__()
        size, rest = divmod(self.num_experts, self.num_expert_groups)
        if rest or size < 2:
            raise ValueError(
                f"num_expert_groups={self.num_expert_groups} of num_experts={self.num_experts}: they must be of equal "
                "size, at least two experts"
            )
        if self.num_chosen_groups > self.num_expert_groups or self.num_chosen > self.num_chosen_groups * size:
            raise ValueError(
                f"num_chosen={self.num_chosen} experts of num_chosen_groups={self.num_chosen_groups} groups for a "
                f"token, and there are {self.num_expert_groups} groups of {size}"
            )

    @property
    def stacks(self) -> dict[str, tuple[range, tuple[str, ...]]]:
        """The layers of each stack of blocks, and the kinds of its repeating group of layers."""
        dense = min(self.num_dense_layers, self.num_layers)
        parts = {"dense_blocks": range(dense), "blocks": range(dense, self.num_layers)}
        return {name: (part, (name,)) for name, part in parts.items() if part}


PRESETS = {
    "deepseek-v3": ("deepseek-ai/DeepSeek-V3", Config()),
    "deepseek-v3-base": ("deepseek-ai/DeepSeek-V3-Base", Config()),
    "moonlight-16b-a3b": (
        "moonshotai/Moonlight-16B-A3B",
        Config(
            vocab_size=163840, max_length=8192, width=2048, num_layers=27, num_dense_layers=1, num_heads=16,
            query_rank=None, mlp_dim=11264, expert_dim=1408, num_shared=2, num_experts=64, num_chosen=6,
            num_expert_groups=1, num_chosen_groups=1, expert_scale=2.446, norm_epsilon=1e-5,
            rope=Rope(theta=50000.0, interleaved=True), eos_id=163585,
        ),
    ),
}  # fmt: skip


class DenseBlock(RotaryBlock):
    """With latent attention (section 2.1.1)."""

    def attend(
        self, h_BTD: jax.Array, kv: Any, mask: Mask, start: Any, rotation: Any, train: bool
    ) -> tuple[jax.Array, Any]:
        cfg = self.config
        attention = LatentAttention(
            cfg.num_heads, cfg.head_dim, cfg.rope_dim, cfg.value_dim, cfg.latent_dim, cfg.query_rank, self.compute,
            functools.partial(self.compute.rms_norm, epsilon=LATENT_EPSILON), use_bias=cfg.attention_bias,
            dropout=cfg.attention_dropout, init=nn.initializers.normal(cfg.init_std), name="attention",
        )  # fmt: skip
        scale = (cfg.head_dim + cfg.rope_dim) ** -0.5 * cfg.rope.score_scale
        kv_seen, kv_now = caches.update(kv, attention.keys_values(h_BTD, rotation), start)
        seen = {"mask": mask, "scale": scale, "rotation": rotation, "train": train}
        return attention(h_BTD, caches.from_cache_layout(kv_seen), **seen), None if kv is None else kv_now


class Block(DenseBlock):
    """With experts beside the MLP, which stands for those that are shared (section 2.1.2)."""

    def mlp(self, h_BTD: jax.Array) -> jax.Array:
        cfg, activation = self.config, ACTIVATIONS[self.config.activation]
        sigmoid = Sigmoid(
            num_groups=cfg.num_expert_groups, num_chosen_groups=cfg.num_chosen_groups, scale=cfg.expert_scale
        )
        experts = Experts(
            cfg.num_experts, cfg.num_chosen, cfg.expert_dim, self.compute, lambda gate, up: activation(gate) * up,
            normalised=cfg.normalised, sigmoid=sigmoid, balance_weight=cfg.balance_weight,
            kernel_init=nn.initializers.normal(cfg.init_std), name="experts",
        )  # fmt: skip
        return super().mlp(h_BTD) + experts(h_BTD)

    @property
    def mlp_dim(self) -> int:
        return self.config.num_shared * self.config.expert_dim


class Model(RotaryDecoder):
    """DeepSeek-V3 with the head of a task."""

    block: Any = Block

    def setup(self) -> None:
        super().setup()
        self.dense_blocks = DenseBlock(self.config, self.compute)

    def run_blocks(self, x_BTD: jax.Array, tokens_BT: jax.Array, kv: Any, *shared: Any) -> tuple[jax.Array, Any]:
        outs = []
        for i, (name, (part, _)) in enumerate(self.config.stacks.items()):
            own = jax.tree.map(lambda x: x[part.start : part.stop], self.per_layer())  # noqa: B023
            x_BTD, out = stack(
                getattr(self, name), x_BTD, (None if kv is None else kv[i], own), *shared,
                length=len(part), compute=self.compute,
            )  # fmt: skip
            outs.append(out)
        return x_BTD, tuple(outs)


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row, each for a latent and a rotary key.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    check_slots(config, length)
    size = config.latent_dim + config.rope_dim
    kv = tuple(jnp.zeros((len(part), batch, 1, length, size), dtype) for part, _ in config.stacks.values())
    return caches.empty(0, batch, length, 0, 0, dtype).replace(kv=kv)


def _body(config: Config) -> rows.Rows:
    found = [*rows.embedding("embed_tokens", "token_embed", "V"), *rows.norm("norm", "final_norm")]
    for ours, (part, _) in config.stacks.items():
        theirs = f"layers.*[{part.start}::1]"
        found += [
            *rows.norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm"),
            *rows.norm(f"{theirs}.post_attention_layernorm", f"{ours}/mlp_norm"),
            *_attention(f"{theirs}.self_attn", f"{ours}/attention", config),
            *_mlp(f"{theirs}.mlp" if ours == "dense_blocks" else f"{theirs}.mlp.shared_experts", ours),
        ]
        if ours == "blocks":
            found += experts_layout.body(f"{theirs}.mlp", "gate_proj up_proj down_proj")
            found += ((f"{theirs}.mlp.gate.e_score_correction_bias", f"{ours}/experts/correction/bias", "E -> E"),)
    return tuple(found)


def _mlp(theirs: str, ours: str) -> rows.Rows:
    layers = ("gate", "up", "down")
    return tuple(row for name in layers for row in rows.dense(f"{theirs}.{name}_proj", f"{ours}/mlp_{name}"))


def _attention(theirs: str, ours: str, config: Config) -> rows.Rows:
    query, latent = "q_proj" if config.query_rank is None else "q_b_proj", f"{ours}/{{latent,rotary}}"
    return (
        *rows.dense(f"{theirs}.q_a_proj", f"{ours}/query_latent"),
        *rows.norm(f"{theirs}.q_a_layernorm", f"{ours}/query_norm"),
        *rows.split_heads(f"{theirs}.{query}", f"{ours}/query"),
        (f"{theirs}.kv_a_proj_with_mqa.weight", f"{latent}/kernel", "(n K) D -> n D K"),
        (f"{theirs}.kv_a_proj_with_mqa.bias", f"{latent}/bias", "(n K) -> n K"),
        *rows.norm(f"{theirs}.kv_a_layernorm", f"{ours}/latent_norm"),
        (f"{theirs}.kv_b_proj.weight", f"{ours}/{{key,value}}/kernel", "(H n K) I -> n I H K"),
        *rows.merge_heads(f"{theirs}.o_proj", f"{ours}/out"),
    )


def _further_token(config: Config) -> tuple[tuple[str, str, str], ...]:
    """The module that follows the layers (section 2.2)."""
    layer = rf"layers\.{config.num_layers}"
    return ((rf"{layer}\..*", rf"{layer}\.eh_proj\.weight", "a layer that predicts a further token"),)


def _gguf_sizes(own: Mapping[str, Any]) -> tuple[int, int]:
    """Of a GGUF file, the elements of a head's key without positions, and of its value."""
    if not {"attention.key_length_mla", "attention.value_length_mla", "rope.dimension_count"} <= own.keys():
        raise ValueError(
            "deepseek2.attention.key_length_mla is not there: old files, in which keys and values are made by one "
            "tensor, are not supported"
        )
    latent, rotary = own["attention.kv_lora_rank"], own["rope.dimension_count"]
    if own.get("attention.key_length") != latent + rotary or own.get("attention.value_length") != latent:
        raise ValueError(f"deepseek2.attention.key_length is not that of a latent and a rotary key, {latent + rotary}")
    return own["attention.key_length_mla"] - rotary, own["attention.value_length_mla"]


def _gguf_scores(own: Mapping[str, Any], shapes: Any) -> str:
    """Of a GGUF file, the `scoring_func`."""
    if (number := own.get("expert_gating_func")) != _SIGMOID:
        raise ValueError(f"deepseek2.expert_gating_func is {number}: only experts that sigmoids choose are supported")
    return "sigmoid"


_SIGMOID, _LAYER, _SHARED = 2, "model.layers.*", "model.layers.*.mlp.shared_experts"
_GGUF = gguf.Gguf(
    architecture="deepseek2",
    names=gguf.named(
        {
            "blk.*.attn_k": None, "blk.*.attn_v": None,
            "blk.*.attn_q_a": f"{_LAYER}.self_attn.q_a_proj", "blk.*.attn_q_b": f"{_LAYER}.self_attn.q_b_proj",
            "blk.*.attn_q_a_norm": f"{_LAYER}.self_attn.q_a_layernorm",
            "blk.*.attn_kv_a_mqa": f"{_LAYER}.self_attn.kv_a_proj_with_mqa",
            "blk.*.attn_kv_a_norm": f"{_LAYER}.self_attn.kv_a_layernorm",
            **gguf.experts(f"{_LAYER}.mlp", "gate_proj up_proj down_proj"),
            **{f"blk.*.ffn_{name}_shexp": f"{_SHARED}.{name}_proj" for name in ("gate", "up", "down")},
            **gguf.FURTHER_TOKEN,
        }
    ),
    rows=(
        ("blk.*.attn_{k_b,v_b}.weight", f"{_LAYER}.self_attn.kv_b_proj.weight", "n H R K | n H K R -> (H n K) R"),
        ("blk.*.exp_probs_b.bias", f"{_LAYER}.mlp.gate.e_score_correction_bias", "E -> E"),
    ),
    axes={"K": _gguf_sizes},
    keys={
        "leading_dense_block_count": "first_k_dense_replace", "rope.dimension_count": "qk_rope_head_dim",
        "attention.q_lora_rank": "q_lora_rank", "attention.kv_lora_rank": "kv_lora_rank",
        "attention.value_length_mla": "v_head_dim", "expert_feed_forward_length": "moe_intermediate_size",
        "expert_count": "n_routed_experts", "expert_used_count": "num_experts_per_tok",
        "expert_shared_count": "n_shared_experts", "expert_weights_scale": "routed_scaling_factor",
        "expert_weights_norm": "norm_topk_prob", "expert_group_count": "n_group",
        "expert_group_used_count": "topk_group",
        **dict.fromkeys((
            "attention.head_count_kv", "attention.key_length", "attention.value_length", "attention.key_length_mla",
            "expert_gating_func", "nextn_predict_layers",
        )),
    },
    # There is one head of keys and values, the latents.
    defaults={
        "attention.head_count_kv": lambda settings: 1,
        "attention.key_length": lambda settings: settings["kv_lora_rank"] + settings["qk_rope_head_dim"],
        "attention.value_length": lambda settings: settings["kv_lora_rank"],
        "attention.key_length_mla": lambda settings: settings["qk_nope_head_dim"] + settings["qk_rope_head_dim"],
        "expert_gating_func": lambda settings: _SIGMOID,
    },
    derived={
        "num_hidden_layers": gguf.num_layers,
        "qk_nope_head_dim": lambda own, shapes: _gguf_sizes(own)[0],
        "q_lora_rank": lambda own, shapes: own.get("attention.q_lora_rank"),
        "scoring_func": _gguf_scores,
        "norm_topk_prob": lambda own, shapes: own.get("expert_weights_norm", False),
        "routed_scaling_factor": lambda own, shapes: own.get("expert_weights_scale", 1.0),
        "n_group": lambda own, shapes: own.get("expert_group_count", 1),
        "topk_group": lambda own, shapes: own.get("expert_group_used_count", 1),
    },
    scales_scores=True,
)  # fmt: skip


PUBLISHED = dataclasses.replace(
    llama_layout.published(
        model_type="deepseek_v3",
        class_prefix="DeepseekV3",
        gguf=_GGUF,
        config={
            **llama_layout.multi_head_config(functools.partial(Rope, interleaved=True), eos_id=1, longest=4096),
            "norm_epsilon": Key("rms_norm_eps", 1e-6),
            "attention_dropout": Key("attention_dropout", 0.0),
            "attention_bias": Key("attention_bias", False),
            "num_dense_layers": Key("first_k_dense_replace", 3),
            "head_dim": Key("qk_nope_head_dim", 128),
            "rope_dim": Key("qk_rope_head_dim", 64),
            "value_dim": Key("v_head_dim", 128),
            "latent_dim": Key("kv_lora_rank", 512),
            "query_rank": Key("q_lora_rank", 1536),
            "expert_dim": Key("moe_intermediate_size", 2048),
            "num_shared": Key("n_shared_experts", 1),
            "num_experts": Key("n_routed_experts", 256),
            "num_chosen": Key("num_experts_per_tok", 8),
            "num_expert_groups": Key("n_group", 8),
            "num_chosen_groups": Key("topk_group", 4),
            "normalised": Key("norm_topk_prob", True),
            "expert_scale": Key("routed_scaling_factor", 2.5),
            "balance_weight": Key("aux_loss_alpha", 0.0001),
        },
        fixed={"rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
        derived={
            "num_key_value_heads": lambda config: config.num_heads,
            "num_nextn_predict_layers": lambda config: 0,
        },
    ),
    body=_body,
    unread=_further_token,
)
