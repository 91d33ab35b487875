"""Keys of config.json and rows of tensors that LLaMA and its relatives share."""

from collections.abc import Callable, Mapping
from typing import Any

from transformer_zoo.published import layer_types, rope, rows
from transformer_zoo.published.spec import Key, Published, first_id


def config(make_rope: Callable[..., Any], **defaults: Any) -> dict[str, Key]:
    """The keys that all of them have. The arguments are those of `multi_head_config`."""
    return {
        **multi_head_config(make_rope, **defaults),
        "num_kv_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "norm_epsilon": Key("rms_norm_eps", 1e-6),
        "attention_dropout": Key("attention_dropout", 0.0),
    }


def multi_head_config(
    make_rope: Callable[..., Any], *, eos_id: int | None, longest: int, **rope_defaults: Any
) -> dict[str, Key]:
    """The keys of the fields of `nn.rotary_decoder.MultiHeadConfig`, but for `norm_epsilon`.

    Args:
        make_rope: as in `rope.keys`.
        eos_id: the end of text of a config.json without one.
        longest: `max_position_embeddings` of a config.json without it.
    """
    return {
        "vocab_size": Key("vocab_size"),
        "width": Key("hidden_size"),
        "num_layers": Key("num_hidden_layers"),
        "num_heads": Key("num_attention_heads"),
        "mlp_dim": Key("intermediate_size"),
        "activation": Key("hidden_act", "silu"),
        **rope.keys(make_rope, longest=longest, **rope_defaults),
        "init_std": Key("initializer_range", 0.02),
        "tied": Key("tie_word_embeddings", False),
        "eos_id": Key("eos_token_id", eos_id, first_id),
        "problem": Key("problem_type", None),
    }


def _num_kv_heads(number: Any, settings: Mapping[str, Any]) -> Any:
    return settings.get("num_attention_heads") if number is None else number


def _head_dim(size: Any, settings: Mapping[str, Any]) -> Any:
    return settings["hidden_size"] // settings["num_attention_heads"] if size is None else size


KV_HEADS = Key("num_key_value_heads", None, _num_kv_heads)
"""As many as query heads where a config.json has no number."""
HEAD_DIM = Key("head_dim", None, _head_dim)
"""What the heads divide the width into where a config.json has no size."""

WINDOWS = {
    "defaults": {"layer_types": None, "use_sliding_window": False},
    "derived": {"use_sliding_window": lambda config: config.window is not None},
}
"""What goes with the keys of `windows`."""


def windows(length: int | None) -> dict[str, Key]:
    """The keys of models whose last layers have a window: its length, and the number of layers without one.

    Args:
        length: that of a config.json without one.
    """

    def read(value: Any, settings: Mapping[str, Any]) -> Any:
        return value if settings["use_sliding_window"] else None

    return {
        "window": Key("sliding_window", length, read),
        "global_layers": Key("max_window_layers", 28, _global_layers),
    }


def _global_layers(number: int, settings: Mapping[str, Any]) -> int:
    """From the number, or from the list of the layers' kinds, which takes precedence."""
    layers, kinds, (sliding, full) = settings["num_hidden_layers"], settings["layer_types"], layer_types.KINDS
    listed = lambda n: [full] * min(n, layers) + [sliding] * max(layers - n, 0)
    if kinds is not None and settings["use_sliding_window"] and kinds != listed(number):
        number = kinds.index(sliding) if sliding in kinds else layers
        if kinds != listed(number):
            raise ValueError(f"layer_types must be {full} of the first layers, and {sliding} of the rest")
    return number


_LAYER = "layers.*"
BODY = (
    *rows.embedding("embed_tokens", "token_embed", "V"),
    *rows.norm(f"{_LAYER}.input_layernorm", "blocks/attention_norm"),
    *rows.merge_heads(f"{_LAYER}.self_attn.o_proj", "blocks/attention/out"),
    *rows.norm("norm", "final_norm"),
)
QKV = (
    *rows.split_heads(f"{_LAYER}.self_attn.q_proj", "blocks/attention/query"),
    *rows.split_heads(f"{_LAYER}.self_attn.k_proj", "blocks/attention/key"),
    *rows.split_heads(f"{_LAYER}.self_attn.v_proj", "blocks/attention/value"),
)
MLP = (
    *rows.dense(f"{_LAYER}.mlp.gate_proj", "blocks/mlp_gate"),
    *rows.dense(f"{_LAYER}.mlp.up_proj", "blocks/mlp_up"),
    *rows.dense(f"{_LAYER}.mlp.down_proj", "blocks/mlp_down"),
)
OUT_NORMS = (
    *rows.norm(f"{_LAYER}.post_attention_layernorm", "blocks/attention_out_norm"),
    *rows.norm(f"{_LAYER}.post_feedforward_layernorm", "blocks/mlp_out_norm"),
)
"""Norms of the sublayers' outputs."""
HEADS = rows.HEADS | {"token-classification": rows.dense("score", "head/scores")}
WITH_ANSWERS = (*HEADS, *rows.ANSWERS)
"""The tasks of a family that also answers questions."""
OLD_PREFIX = {"base": "", "question-answering": "transformer."}
"""The beginnings of names of families whose first files for this task had those of GPT-2."""

BIASED_LM_HEAD = HEADS["causal-lm"] + rows.bias("lm_head.bias", "lm_head/bias")


def published(**family: Any) -> Published:
    """The published layout of one of them: `defaults` are beside those of the shared keys, `mlp_norm` is the name of
    the norm before the MLP, `qkv` and `mlp` are the tensors of attention's first projections and of the MLP, and
    `tasks` are those that have a head."""
    mlp_norm, tasks = family.pop("mlp_norm", "post_attention_layernorm"), family.pop("tasks", HEADS)
    config = family.pop("config")
    if "token-classification" in tasks:
        config = {"head_dropout": Key("classifier_dropout", 0.1)} | config
    if "sequence-classification" not in tasks:
        config = {ours: key for ours, key in config.items() if ours != "problem"}
    return Published(
        config=config,
        prefix="model.",
        defaults=rope.DEFAULTS | family.pop("defaults", {}),
        body=BODY
        + family.pop("qkv", QKV)
        + family.pop("mlp", MLP)
        + rows.norm(f"{_LAYER}.{mlp_norm}", "blocks/mlp_norm")
        + family.pop("body", ()),
        heads={task: (HEADS | rows.ANSWERS)[task] for task in tasks},
        tied={"lm_head.weight": "embed_tokens.weight"},
        ignored=((r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", "frequencies, which old files hold as a buffer"),),
        **family,
    )
