"""Smarter, Better, Faster, Longer: A Modern Bidirectional Encoder, Warner et al. 2024 (ModernBERT)."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import Attention, Compute, Encoder, EncoderConfig, Inputs, Mask, TokenEmbedding, heads, tasks
from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.pooling import mean
from transformer_zoo.nn.rotary import Rope
from transformer_zoo.published import Key, Published, bert_layout, layer_types, rope, rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(EncoderConfig):
    """The architecture: what a checkpoint fixes. The other fields are BERT's: `nn.EncoderConfig`.

    Raises:
        ValueError: as `Architecture`, and heads of odd size.
    """

    vocab_size: int = 50368
    max_length: int = 8192
    num_layers: int = 22
    mlp_dim: int = 1152
    norm_epsilon: float = 1e-5
    norm_bias: bool = False
    attention_bias: bool = False
    global_every: int = 3  # layers 0, n, 2n, ... attend to all tokens; the others, to a window
    window: int = 128  # half of it on each side of a token
    global_theta: float = 160000.0
    local_theta: float = 10000.0
    mlp_bias: bool = False
    init_cutoff: float = 2.0  # in standard deviations
    embed_dropout: float = 0.0
    attention_dropout: float = 0.0
    mlp_dropout: float = 0.0
    head_bias: bool = False
    head_activation: str = "gelu"
    head_pooling: Literal["cls", "mean"] = "cls"
    head_dropout: float = 0.0
    decoder_bias: bool = True
    pad_id: int | None = 50283

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width // self.num_heads % 2:
            raise ValueError(
                f"num_heads={self.num_heads} and width={self.width} make heads of the odd size "
                f"{self.width // self.num_heads}: rotary positions turn pairs"
            )

    def local_layers(self) -> np.ndarray:
        """bool[L]: whether the attention of a layer is limited to the window."""
        return np.arange(self.num_layers) % self.global_every != 0


_LARGE = {"width": 1024, "num_layers": 28, "num_heads": 16, "mlp_dim": 2624}
PRESETS = {
    "modernbert-base": ("answerdotai/ModernBERT-base", Config(head_pooling="mean")),
    "modernbert-large": ("answerdotai/ModernBERT-large", Config(**_LARGE, head_pooling="mean")),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)) with a gated MLP (Shazeer 2020), section 2.1.1."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: dict[str, jax.Array], mask: Mask, rotations: dict[str, Any], train: bool
    ) -> tuple[jax.Array, None]:
        cfg, compute, (init, out_init) = self.config, self.compute, initializers(self.config)
        norm, dense = make_norm(cfg, compute), functools.partial(compute.dense, use_bias=cfg.mlp_bias)
        drop = functools.partial(nn.Dropout, deterministic=not train)
        attention = Attention(
            cfg.num_heads, cfg.width // cfg.num_heads, compute, use_bias=cfg.attention_bias,
            dropout=cfg.attention_dropout, init=init, out_init=out_init, name="attention",
        )  # fmt: skip
        turn = jax.tree.map(functools.partial(jnp.where, layer["local"]), rotations["local"], rotations["global"])
        mask = mask.replace(window=cfg.window, local=layer["local"])

        # The first layer has no norm here: the embeddings have just been normalised.
        y_BTD = jnp.where(layer["first"], x_BTD, norm(name="attention_norm")(x_BTD))
        y_BTD = attention(y_BTD, attention.keys_values(y_BTD, turn), mask=mask, rotation=turn, train=train)
        x_BTD = x_BTD + drop(cfg.attention_dropout)(y_BTD)
        y_BTD = norm(name="mlp_norm")(x_BTD)
        gate_BTF = ACTIVATIONS[cfg.activation](dense(cfg.mlp_dim, kernel_init=init, name="mlp_gate")(y_BTD))
        h_BTF = drop(cfg.mlp_dropout)(gate_BTF * dense(cfg.mlp_dim, kernel_init=init, name="mlp_up")(y_BTD))
        return x_BTD + dense(cfg.width, kernel_init=out_init, name="mlp_down")(h_BTF), None


class Classifier(nn.Module):
    """Logits of classes, in at least float32, after the same layers that come before the vocabulary's."""

    config: Config
    classes: int
    compute: Compute

    @nn.compact
    def __call__(self, x_BD: jax.Array, train: bool) -> jax.Array:
        cfg, dense, (_, out_init) = self.config, self.compute.dense, initializers(self.config)
        x_BD = dense(cfg.width, use_bias=cfg.head_bias, kernel_init=out_init, name="dense")(x_BD)
        x_BD = make_norm(cfg, self.compute)(name="norm")(ACTIVATIONS[cfg.head_activation](x_BD))
        x_BD = nn.Dropout(cfg.head_dropout, deterministic=not train)(x_BD)
        scores = dense(self.classes, kernel_init=truncated_normal(cfg, cfg.width**-0.5), name="scores")
        return scores(x_BD).astype(self.compute.accumulation_dtype)


class Model(Encoder):
    """ModernBERT with the head of a task."""

    def setup(self) -> None:
        cfg, compute, (init, out_init) = self.config, self.compute, initializers(self.config)
        norm, task = make_norm(cfg, compute), tasks.TASKS[self.task]
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, init)
        self.embed_norm, self.embed_drop, self.final_norm = norm(), nn.Dropout(cfg.embed_dropout), norm()
        self.blocks = Block(cfg, compute)
        if task.vocabulary:
            self.lm_head = heads.MaskedLM(
                self.token_embed, cfg.head_activation, norm, compute, out_init,
                dense_bias=cfg.head_bias, bias=cfg.decoder_bias,
            )  # fmt: skip
        if scores := task.num_scores(cfg.labels):
            self.head = Classifier(cfg, scores, compute)

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        x_BTD, pad_id = self.token_embed(inputs.tokens_BT), self.config.pad_id
        if pad_id is not None:  # its embedding gets no gradient, as in the code released with the paper
            x_BTD = jnp.where((inputs.tokens_BT == pad_id)[..., None], jax.lax.stop_gradient(x_BTD), x_BTD)
        return self.embed_drop(self.embed_norm(x_BTD), deterministic=not train)

    def encode(self, x_BTD: jax.Array, inputs: Inputs, train: bool) -> jax.Array:
        cfg = self.config
        sizes = (cfg.width // cfg.num_heads, cfg.max_length, self.compute.accumulation_dtype)
        rotations = {
            name: Rope(theta=theta).rotation(inputs.positions_BT, *sizes)
            for name, theta in (("local", cfg.local_theta), ("global", cfg.global_theta))
        }
        layers = {"local": jnp.asarray(cfg.local_layers()), "first": jnp.arange(cfg.num_layers) == 0}
        return self.final_norm(self.run(self.blocks, x_BTD, layers, inputs.mask, rotations, train))

    def summary(self, hidden_BTD: jax.Array, valid_BT: jax.Array | None) -> jax.Array:
        if self.config.head_pooling == "mean":
            valid_BT = jnp.ones(hidden_BTD.shape[:2], bool) if valid_BT is None else valid_BT
            return mean(hidden_BTD, valid_BT).astype(hidden_BTD.dtype)
        return super().summary(hidden_BTD, valid_BT)


def make_norm(cfg: Config, compute: Compute) -> Any:
    """The constructor of the layer norms."""
    return functools.partial(compute.layer_norm, epsilon=cfg.norm_epsilon, use_bias=cfg.norm_bias)


def truncated_normal(cfg: Config, std: float) -> Any:
    """A normal distribution, cut at `init_cutoff` standard deviations (appendix A: as Megatron's)."""
    return nn.initializers.truncated_normal(std, lower=-cfg.init_cutoff, upper=cfg.init_cutoff)


def initializers(cfg: Config) -> tuple[Any, Any]:
    """Of weights, and of those whose output is added to the residual stream: narrower, since 2 L outputs add up."""
    return truncated_normal(cfg, cfg.init_std), truncated_normal(cfg, cfg.init_std / (2 * cfg.num_layers) ** 0.5)


_CLASSIFIER = (*rows.dense("head.dense", "head/dense"), *rows.norm("head.norm", "head/norm"), *bert_layout.CLASSIFIER)
PUBLISHED = Published(
    model_type="modernbert",
    class_prefix="ModernBert",
    config={
        "vocab_size": Key("vocab_size"),
        "max_length": Key("max_position_embeddings"),
        "width": Key("hidden_size"),
        "num_layers": Key("num_hidden_layers"),
        "num_heads": Key("num_attention_heads"),
        "mlp_dim": Key("intermediate_size"),
        "activation": Key("hidden_activation", "gelu"),
        "norm_epsilon": Key("norm_eps", 1e-5),
        "norm_bias": Key("norm_bias", False),
        "attention_bias": Key("attention_bias", False),
        "mlp_bias": Key("mlp_bias", False),
        "global_every": Key("global_attn_every_n_layers", 3, functools.partial(layer_types.every, from_first=True)),
        "window": Key("local_attention", 128),
        "global_theta": Key("global_rope_theta", 160000.0, functools.partial(rope.default_theta, "full_attention")),
        "local_theta": Key("local_rope_theta", 10000.0, functools.partial(rope.default_theta, "sliding_attention")),
        "init_std": Key("initializer_range", 0.02),
        "init_cutoff": Key("initializer_cutoff_factor", 2.0),
        "embed_dropout": Key("embedding_dropout", 0.0),
        "attention_dropout": Key("attention_dropout", 0.0),
        "mlp_dropout": Key("mlp_dropout", 0.0),
        "head_dropout": Key("classifier_dropout", 0.0),
        "head_activation": Key("classifier_activation", "gelu"),
        "head_bias": Key("classifier_bias", False),
        "head_pooling": Key("classifier_pooling", "cls"),
        "decoder_bias": Key("decoder_bias", True),
        "pad_id": Key("pad_token_id", 50283),
        "problem": Key("problem_type", None),
    },
    defaults={"layer_types": None, "rope_parameters": None},
    fixed={"rope_scaling": None, **bert_layout.TIED_WORDS},
    prefix="model.",
    body=(
        *rows.embedding("embeddings.tok_embeddings", "token_embed", "V"),
        *rows.norm("embeddings.norm", "embed_norm"),
        *rows.norm("layers.*[1:].attn_norm", "blocks/attention_norm"),
        ("layers.*.attn.Wqkv.weight", "blocks/attention/{query,key,value}/kernel", "(n H K) D -> n D H K"),
        ("layers.*.attn.Wqkv.bias", "blocks/attention/{query,key,value}/bias", "(n H K) -> n H K"),
        *rows.merge_heads("layers.*.attn.Wo", "blocks/attention/out"),
        *rows.norm("layers.*.mlp_norm", "blocks/mlp_norm"),
        ("layers.*.mlp.Wi.weight", "blocks/{mlp_gate,mlp_up}/kernel", "(n F) D -> n D F"),
        ("layers.*.mlp.Wi.bias", "blocks/{mlp_gate,mlp_up}/bias", "(n F) -> n F"),
        *rows.dense("layers.*.mlp.Wo", "blocks/mlp_down"),
        *rows.norm("final_norm", "final_norm"),
    ),
    heads={
        "masked-lm": bert_layout.masked_lm("head.dense", "head.norm", "decoder.bias"),
        **dict.fromkeys(bert_layout.CLASSIFIERS, _CLASSIFIER),
    },
    tied={"decoder.weight": "embeddings.tok_embeddings.weight"},
)
