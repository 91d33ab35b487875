"""Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder, Warner et al. 2024 (ModernBERT)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Attention, Compute, Mask, Output, TokenEmbedding, heads, pooling, stack
from transformer_zoo.nn.activations import ACTIVATIONS, check_activation
from transformer_zoo.nn.checks import (
    check_choice,
    check_heads,
    check_ids,
    check_labels,
    check_rates,
    check_sizes,
    check_token,
    check_tokens,
)
from transformer_zoo.nn.positions import encoder_inputs, rotation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width or are of odd size, an unknown activation or
            pooling, no rate of dropout, no or equal labels, a token for padding outside of the vocabulary.
    """

    vocab_size: int = 50368
    max_length: int = 8192
    width: int = 768
    num_layers: int = 22
    num_heads: int = 12
    mlp_dim: int = 1152
    activation: str = "gelu"
    norm_epsilon: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    global_every: int = 3  # the first layer of so many sees everything; the others, what a window shows
    window: int = 128  # half of it on each side of a token
    global_theta: float = 160000.0
    local_theta: float = 10000.0
    init_std: float = 0.02
    init_cutoff: float = 2.0  # in standard deviations
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    head_dropout: float = 0.0
    head_activation: str = "gelu"
    head_bias: bool = False
    head_pooling: str = "cls"
    decoder_bias: bool = True
    pad_id: int | None = 50283
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(
            self, "vocab_size", "max_length", "width", "num_layers", "num_heads", "mlp_dim", "global_every", "window"
        )
        check_heads(self.width, self.num_heads)
        if self.width // self.num_heads % 2:
            raise ValueError(
                f"num_heads={self.num_heads} and width={self.width} make heads of the odd size "
                f"{self.width // self.num_heads}: rotary positions turn pairs"
            )
        check_rates(self, "embed_dropout", "attention_dropout", "mlp_dropout", "head_dropout")
        check_activation(self.activation)
        check_choice(self, "head_activation", ACTIVATIONS)
        check_choice(self, "head_pooling", POOLINGS)
        check_token(self, "pad_id")
        check_labels(self.labels)


POOLINGS = ("cls", "mean")
PRESETS = {
    "modernbert-base": ("answerdotai/ModernBERT-base", Config(head_pooling="mean")),
    "modernbert-large": (
        "answerdotai/ModernBERT-large",
        Config(width=1024, num_layers=28, num_heads=16, mlp_dim=2624, head_pooling="mean"),
    ),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a gated MLP (Shazeer 2020), section 2.1.1."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: dict[str, jax.Array], mask: Mask, rotations: dict[str, Any], train: bool
    ) -> tuple[jax.Array, None]:
        cfg, compute, inner, outer = self.config, self.compute, initializer(self.config), out_initializer(self.config)
        dense = functools.partial(compute.dense, use_bias=cfg.mlp_bias)
        drop = functools.partial(nn.Dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, use_bias=cfg.attention_bias,
            dropout=cfg.attention_dropout, init=inner, out_init=outer, name="attention",
        )  # fmt: skip
        turn = jax.tree.map(functools.partial(jnp.where, layer["local"]), rotations["local"], rotations["global"])

        # The embeddings' norm is just behind, so the first layer has none.
        y_BTD = jnp.where(layer["first"], x_BTD, norm(self)(name="attention_norm")(x_BTD))
        seen = mask.replace(window=cfg.window, local=layer["local"])
        y_BTD = attention(y_BTD, attention.keys_values(y_BTD, turn), mask=seen, rotation=turn, train=train)
        x_BTD = x_BTD + drop(cfg.attention_dropout)(y_BTD)
        y_BTD = norm(self)(name="mlp_norm")(x_BTD)
        gate_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, kernel_init=inner, name="mlp_gate")(y_BTD))
        h_BTF = drop(cfg.mlp_dropout)(gate_BTF * dense(cfg.mlp_dim, kernel_init=inner, name="mlp_up")(y_BTD))
        return x_BTD + dense(cfg.width, kernel_init=outer, name="mlp_down")(h_BTF), None


class Classifier(nn.Module):
    """Scores classes, in at least float32, behind the layers that stand before the vocabulary too."""

    config: Config
    classes: int
    compute: Compute

    @nn.compact
    def __call__(self, x_BD: jax.Array, train: bool) -> jax.Array:
        cfg, dense = self.config, self.compute.dense
        x_BD = dense(cfg.width, use_bias=cfg.head_bias, kernel_init=out_initializer(cfg), name="dense")(x_BD)
        x_BD = norm(self)(name="norm")(ACTIVATIONS[cfg.head_activation](x_BD))
        x_BD = nn.Dropout(cfg.head_dropout, deterministic=not train)(x_BD)
        scores = dense(self.classes, kernel_init=initializer(cfg, cfg.width**-0.5), name="scores")
        return scores(x_BD).astype(self.compute.accumulation_dtype)


class Model(nn.Module):
    """ModernBERT with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "masked-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg))
        self.embed_norm, self.embed_drop = norm(self)(), nn.Dropout(cfg.embed_dropout)
        self.blocks = Block(cfg, compute)
        self.final_norm = norm(self)()
        if self.task in heads.LANGUAGE_MODEL:
            self.lm_head = heads.MaskedLM(
                self.token_embed, cfg.head_activation, norm(self), compute, out_initializer(cfg),
                dense_bias=cfg.head_bias, bias=cfg.decoder_bias,
            )  # fmt: skip
        if classes := heads.classes(self.task, cfg.labels):
            self.head = Classifier(cfg, classes, compute)

    def __call__(
        self,
        tokens_BT: jax.Array,
        valid_BT: jax.Array | None = None,
        positions_BT: jax.Array | None = None,
        train: bool = False,
    ) -> Output:
        """Reads whole rows.

        Args:
            tokens_BT: ids, int[B, T]; for multiple-choice [B, C, T], a row for each choice, as are the others then.
            valid_BT: which tokens are real; the rest is padding, on the left or on the right. None: all.
            positions_BT: by default counted over the real tokens of the row; only their differences matter.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ.
        """
        cfg, tokens = self.config, tokens_BT
        tokens_BT, valid_BT, positions_BT = heads.as_rows(
            self.task, tokens_BT, valid_BT=valid_BT, positions_BT=positions_BT
        )
        check_tokens(tokens_BT, cfg.vocab_size, cfg.max_length)
        positions_BT, mask = encoder_inputs(tokens_BT, valid_BT, positions_BT)
        check_ids(positions_BT, cfg.max_length, "positions_BT", "the positions")
        turn = functools.partial(
            rotation, positions_BT, cfg.width // cfg.num_heads, dtype=self.compute.accumulation_dtype
        )
        rotations = {"local": turn(cfg.local_theta), "global": turn(cfg.global_theta)}
        layers = {"local": jnp.asarray(local_layers(cfg)), "first": jnp.arange(cfg.num_layers) == 0}

        x_BTD = self.token_embed(tokens_BT)
        if cfg.pad_id is not None:  # to read what fills a row teaches nothing, as in the code released with the paper
            x_BTD = jnp.where((tokens_BT == cfg.pad_id)[..., None], jax.lax.stop_gradient(x_BTD), x_BTD)
        x_BTD = self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)
        self.sow("intermediates", "embedded_BTD", x_BTD)
        x_BTD, _ = stack(
            self.blocks, x_BTD, layers, mask, rotations, train, length=cfg.num_layers, compute=self.compute
        )
        hidden_BTD = self.final_norm(x_BTD)
        return heads.output(self, tokens, hidden_BTD, summary_BD=self._summary(hidden_BTD, mask.valid_BS), train=train)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of what masked tokens are, over the padded vocabulary; a loss needs but its masks."""
        return self.lm_head(hidden_BTD)

    def _summary(self, hidden_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
        """What stands for a sequence, [B, D]."""
        valid_BT = jnp.ones(hidden_BTD.shape[:2], bool) if valid_BT is None else valid_BT
        if self.config.head_pooling == "mean":
            return pooling.mean(hidden_BTD, valid_BT).astype(hidden_BTD.dtype)
        # With padding on the left, the reference looks for the first real token only where it judges choices.
        return pooling.first(hidden_BTD, valid_BT) if self.task == "multiple-choice" else hidden_BTD[:, 0]


def norm(module: nn.Module) -> Any:
    """Makes the normalisation layers of a module's config."""
    cfg = module.config
    return functools.partial(module.compute.layer_norm, epsilon=cfg.norm_epsilon, use_bias=cfg.norm_bias)


def local_layers(cfg: Config) -> np.ndarray:
    """bool[L]: whether a layer sees but a window."""
    return np.arange(cfg.num_layers) % cfg.global_every != 0


def initializer(cfg: Config, std: float | None = None) -> Any:
    """For weights that read: a normal distribution, cut off (appendix A: as Megatron's)."""
    cut = {"lower": -cfg.init_cutoff, "upper": cfg.init_cutoff}
    return nn.initializers.truncated_normal(cfg.init_std if std is None else std, **cut)


def out_initializer(cfg: Config) -> Any:
    """For weights that write: narrower, since 2 L of them add up in the residual stream."""
    return initializer(cfg, cfg.init_std / (2 * cfg.num_layers) ** 0.5)


example_inputs = heads.example_inputs


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "ModernBertModel",
    "masked-lm": "ModernBertForMaskedLM",
    "sequence-classification": "ModernBertForSequenceClassification",
    "token-classification": "ModernBertForTokenClassification",
    "question-answering": "ModernBertForQuestionAnswering",
    "multiple-choice": "ModernBertForMultipleChoice",
}


def _global_every(every: int, settings: Mapping[str, Any]) -> int:
    """From the number, or from today's list of the layers' kinds, which goes before it."""
    kinds = settings["layer_types"]
    if kinds is None:
        return every
    for n in (max(every, 1), *range(1, len(kinds) + 1)):  # of equal patterns, the one that was meant
        layers = range(settings.get("num_hidden_layers"))
        if kinds == ["sliding_attention" if i % n else "full_attention" for i in layers]:
            return n
    raise ValueError(
        f"layer_types is {kinds!r}: of the num_hidden_layers, every nth one from the first on must be full_attention, "
        "and the others sliding_attention"
    )


def _theta(kind: str, theta: float, settings: Mapping[str, Any]) -> float:
    """From the number, or from today's settings by the layers' kind, which go before it."""
    rope = {"rope_type": "default"} | ((settings["rope_parameters"] or {}).get(kind) or {})
    theta = rope.pop("rope_theta", theta)
    if rope != {"rope_type": "default"}:
        raise ValueError(f"rope_parameters of {kind} are {rope}: only the default rope_type is supported")
    return theta


HF_MODEL_TYPE = "modernbert"
HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "width": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "activation": "hidden_activation",
    "norm_epsilon": "norm_eps",
    "norm_bias": "norm_bias",
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "global_every": ("global_attn_every_n_layers", _global_every, lambda every, config: every),
    "window": "local_attention",
    "global_theta": (
        "global_rope_theta", functools.partial(_theta, "full_attention"), lambda theta, config: theta,
    ),
    "local_theta": (
        "local_rope_theta", functools.partial(_theta, "sliding_attention"), lambda theta, config: theta,
    ),
    "init_std": "initializer_range",
    "init_cutoff": "initializer_cutoff_factor",
    "embed_dropout": "embedding_dropout",
    "attention_dropout": "attention_dropout",
    "mlp_dropout": "mlp_dropout",
    "head_dropout": "classifier_dropout",
    "head_activation": "classifier_activation",
    "head_bias": "classifier_bias",
    "head_pooling": "classifier_pooling",
    "decoder_bias": "decoder_bias",
    "pad_id": "pad_token_id",
    "problem": "problem_type",
}  # fmt: skip
HF_DEFAULTS = {
    "hidden_activation": "gelu",
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "mlp_bias": False,
    "global_attn_every_n_layers": 3,
    "layer_types": None,
    "local_attention": 128,
    "global_rope_theta": 160000.0,
    "local_rope_theta": 10000.0,
    "rope_parameters": None,
    "initializer_range": 0.02,
    "initializer_cutoff_factor": 2.0,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "mlp_dropout": 0.0,
    "classifier_dropout": 0.0,
    "classifier_activation": "gelu",
    "classifier_bias": False,
    "classifier_pooling": "cls",
    "decoder_bias": True,
    "pad_token_id": 50283,
    "problem_type": None,
}
HF_FIXED = {"rope_scaling": None, "tie_word_embeddings": True}
HF_PREFIX = "model."
HF_WEIGHTS = (
    # theirs                            ours                                       layout, theirs -> ours
    ("embeddings.tok_embeddings.weight", "token_embed/embedding",                  "V D -> V D"),
    ("embeddings.norm.weight",          "embed_norm/scale",                        "D -> D"),
    ("embeddings.norm.bias",            "embed_norm/bias",                         "D -> D"),
    ("layers.*[1:].attn_norm.weight",   "blocks/attention_norm/scale",             "D -> D"),
    ("layers.*[1:].attn_norm.bias",     "blocks/attention_norm/bias",              "D -> D"),
    ("layers.*.attn.Wqkv.weight",       "blocks/attention/{query,key,value}/kernel", "(n H K) D -> n D H K"),
    ("layers.*.attn.Wqkv.bias",         "blocks/attention/{query,key,value}/bias", "(n H K) -> n H K"),
    ("layers.*.attn.Wo.weight",         "blocks/attention/out/kernel",             "D (H K) -> H K D"),
    ("layers.*.attn.Wo.bias",           "blocks/attention/out/bias",               "D -> D"),
    ("layers.*.mlp_norm.weight",        "blocks/mlp_norm/scale",                   "D -> D"),
    ("layers.*.mlp_norm.bias",          "blocks/mlp_norm/bias",                    "D -> D"),
    ("layers.*.mlp.Wi.weight",          "blocks/{mlp_gate,mlp_up}/kernel",         "(n F) D -> n D F"),
    ("layers.*.mlp.Wi.bias",            "blocks/{mlp_gate,mlp_up}/bias",           "(n F) -> n F"),
    ("layers.*.mlp.Wo.weight",          "blocks/mlp_down/kernel",                  "D F -> F D"),
    ("layers.*.mlp.Wo.bias",            "blocks/mlp_down/bias",                    "D -> D"),
    ("final_norm.weight",               "final_norm/scale",                        "D -> D"),
    ("final_norm.bias",                 "final_norm/bias",                         "D -> D"),
)  # fmt: skip
_LANGUAGE_MODEL = (
    ("head.dense.weight",               "lm_head/dense/kernel",                    "E D -> D E"),
    ("head.dense.bias",                 "lm_head/dense/bias",                      "E -> E"),
    ("head.norm.weight",                "lm_head/norm/scale",                      "E -> E"),
    ("head.norm.bias",                  "lm_head/norm/bias",                       "E -> E"),
    ("decoder.bias",                    "lm_head/bias",                            "V -> V"),
)  # fmt: skip
_CLASSIFIER = (
    ("head.dense.weight",               "head/dense/kernel",                       "E D -> D E"),
    ("head.dense.bias",                 "head/dense/bias",                         "E -> E"),
    ("head.norm.weight",                "head/norm/scale",                         "E -> E"),
    ("head.norm.bias",                  "head/norm/bias",                          "E -> E"),
    ("classifier.weight",               "head/scores/kernel",                      "C E -> E C"),
    ("classifier.bias",                 "head/scores/bias",                        "C -> C"),
)  # fmt: skip
HF_HEADS = {
    "masked-lm": _LANGUAGE_MODEL,
    "sequence-classification": _CLASSIFIER,
    "token-classification": _CLASSIFIER,
    "question-answering": _CLASSIFIER,
    "multiple-choice": _CLASSIFIER,
}
HF_TIED = {"decoder.weight": "embeddings.tok_embeddings.weight"}
HF_IGNORE = ()
