"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, Raffel et al. 2020, and
its successors: T5 1.1, mT5 (Xue et al. 2020), ByT5 (Xue et al. 2021), UL2 (Tay et al. 2022), Flan-T5 (Chung et al.
2022), umT5 (Chung et al. 2023)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax

from transformer_zoo.nn import Compute, Mask, pre_norm
from transformer_zoo.nn.positions import distances
from transformer_zoo.published import Key, Published, bart_layout, rows, t5_layout

init_cache = pre_norm.init_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pre_norm.PreNormConfig):
    """The architecture, by default of T5's small size. The other fields are those of `nn.pre_norm.PreNormConfig`.

    Raises:
        ValueError: too few buckets of distances; a field that contradicts the model type.
    """

    model_type: Literal["t5", "mt5", "umt5"] = "t5"  # the name under which it is published
    bias_per_layer: bool = False  # each layer has its own biases by distance, as in umT5; otherwise each stack
    head_dropout: float = 0.0
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # problem_type in config.json

    def __post_init__(self) -> None:
        super().__post_init__()
        umt5 = self.model_type == "umt5"
        if self.bias_per_layer != umt5:
            raise ValueError(
                f"bias_per_layer={self.bias_per_layer} with model_type={self.model_type!r}: config.json cannot record "
                f"it, since of these models only umt5 has biases for each layer. Set bias_per_layer={umt5}"
            )
        if self.model_type == "mt5" and self.scale_logits:
            raise ValueError(
                "scale_logits=True: an mt5 does not scale its logits, and its config.json cannot record that this one "
                "does. Set scale_logits=False"
            )


def _sizes(width: int, mlp_dim: int, layers: int | tuple[int, int], num_heads: int, **more: Any) -> dict[str, Any]:
    num_layers, num_decoder_layers = (layers, layers) if isinstance(layers, int) else layers
    return {
        "width": width, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_decoder_layers": num_decoder_layers,
        "num_heads": num_heads, **more,
    }  # fmt: skip


_V1_0 = {
    "small": _sizes(512, 2048, 6, 8),
    "base": _sizes(768, 3072, 12, 12),
    "large": _sizes(1024, 4096, 24, 16),
    "3b": _sizes(1024, 16384, 24, 32, head_dim=128),
    "11b": _sizes(1024, 65536, 24, 128, head_dim=128),
}
_V1_1 = {
    "small": _sizes(512, 1024, 8, 6),
    "base": _sizes(768, 2048, 12, 12),
    "large": _sizes(1024, 2816, 24, 16),
    "xl": _sizes(2048, 5120, 24, 32),
    "xxl": _sizes(4096, 10240, 24, 64),
}
_BYTES = {
    "small": _sizes(1472, 3584, (12, 4), 6),
    "base": _sizes(1536, 3968, (18, 6), 12),
    "large": _sizes(1536, 3840, (36, 12), 16),
    "xl": _sizes(2560, 6720, (36, 12), 32),
    "xxl": _sizes(4672, 12352, (36, 12), 64),
}
_1_1 = {"gated_mlp": True, "activation": "gelu_new", "tied": False, "scale_logits": False}
_UL2 = Config(**_sizes(4096, 16384, 32, 16, head_dim=256), gated_mlp=True, activation="silu")


def _presets(hub_id: str, sizes: dict[str, dict[str, Any]], **fields: Any) -> dict[str, tuple[str, Config]]:
    name = hub_id.rpartition("/")[2]
    return {f"{name}-{size}": (f"{hub_id}-{size}", Config(**numbers, **fields)) for size, numbers in sizes.items()}


PRESETS = {
    **_presets("google-t5/t5", _V1_0),
    **_presets("google/t5-v1_1", _V1_1, **_1_1),
    **_presets("google/flan-t5", _V1_1, **_1_1),
    **_presets("google/mt5", _V1_1, model_type="mt5", vocab_size=250112, **_1_1),
    **_presets(
        "google/umt5",
        {size: numbers for size, numbers in _V1_1.items() if size != "large"},
        model_type="umt5", vocab_size=256384, bias_per_layer=True, **_1_1,
    ),
    **_presets("google/byt5", _BYTES, vocab_size=384, **_1_1),
    "ul2": ("google/ul2", _UL2),
    "flan-ul2": ("google/flan-ul2", _UL2),
}  # fmt: skip


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the norms come first, and only scale (section 2.1). The decoder's
    block is `nn.pre_norm.DecoderBlock`."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, layer: None, mask: Mask, ahead_BSS: jax.Array, bias_BHSS: jax.Array | None, train: bool
    ) -> tuple[jax.Array, None]:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = pre_norm.t5_attention(cfg, compute, "attention")
        if bias_BHSS is None:
            bias_BHSS = pre_norm.relative_bias(cfg, compute, causal=False, name="relative_bias")(ahead_BSS)

        h_BSD = norm(name="attention_norm")(x_BSD)
        x_BSD += drop(attention(h_BSD, attention.keys_values(h_BSD), mask=mask, bias=bias_BHSS, scale=1.0, train=train))
        return x_BSD + drop(pre_norm.mlp(cfg, compute, norm(name="mlp_norm")(x_BSD), drop)), None


class Model(pre_norm.PreNormTransformer):
    """T5 with the head of a task."""

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        self.add_embeddings()
        self.encoder_blocks, self.decoder_blocks = EncoderBlock(cfg, compute), pre_norm.DecoderBlock(cfg, compute)
        if cfg.bias_per_layer:  # which the blocks make
            self.encoder_relative_bias = self.decoder_relative_bias = lambda ahead_BTS: None
        else:
            self.encoder_relative_bias = pre_norm.relative_bias(cfg, compute, causal=False)
            self.decoder_relative_bias = pre_norm.relative_bias(cfg, compute, causal=True)
        self.add_classifier(pre_norm.initializer(cfg, cfg.width))

    def encoder_shared(self, source_BS: jax.Array, mask: Mask) -> tuple[Mask, jax.Array, jax.Array | None]:
        ahead_BSS = distances(source_BS.shape[1])
        return mask, ahead_BSS, self.encoder_relative_bias(ahead_BSS)


def _projection(value: str | None, settings: Mapping[str, Any]) -> str:
    """The name of the MLP: of an activation, with "gated-" in front if it is gated."""
    return ("relu" if settings["model_type"] == "t5" else "gated-gelu") if value is None else value


def _scale_logits(value: bool | None, settings: Mapping[str, Any]) -> bool:
    """transformers 5 writes whether logits are scaled; before, it followed from the tie, and an mT5 never does it."""
    return settings["model_type"] != "mt5" and (settings["tie_word_embeddings"] if value is None else value)


def _body(config: Config) -> rows.Rows:
    name = f"layer.0.SelfAttention.{t5_layout.BIAS}"
    return (
        *t5_layout.BODY,
        *t5_layout.attention("encoder.block.*.layer.0.SelfAttention", "encoder_blocks/attention"),
        *rows.embedding(f"encoder.block.0.{name}", "encoder_relative_bias"),
        *rows.embedding(f"encoder.block.*.{name}", "encoder_blocks/relative_bias"),
        *rows.embedding(f"decoder.block.*.{name}", "decoder_blocks/relative_bias"),
        *t5_layout.mlp_up(config.gated_mlp),
    )


PUBLISHED = Published(
    model_type="t5",
    class_prefix="T5",
    aliases={"mt5": "MT5", "umt5": "UMT5"},
    unnamed=("umt5",),
    renamed_classes={"T5WithLMHeadModel": "T5ForConditionalGeneration"},  # of the first checkpoints
    config=t5_layout.CONFIG | {
        "model_type": Key("model_type", "t5"),
        "bias_per_layer": Key(
            "model_type", "t5", lambda value, settings: value == "umt5", lambda value, config: config.model_type
        ),
        **t5_layout.mlp_keys(None, _projection),
        "head_dropout": Key("classifier_dropout", 0.0),
        "scale_logits": Key("scale_decoder_outputs", None, _scale_logits),
        "problem": Key("problem_type", None),
    },
    fixed={"is_decoder": False},
    prefix="transformer.",
    prefixes=dict.fromkeys(("base", "seq2seq-lm", "question-answering"), ""),
    body=_body,
    heads={
        **t5_layout.LANGUAGE_MODEL,
        "sequence-classification": bart_layout.CLASSIFIERS["sequence-classification"],
        "token-classification": rows.dense("classifier", "head/scores"),
        "question-answering": bart_layout.CLASSIFIERS["question-answering"],
    },
    tied=bart_layout.TIED,
    tied_by_tensors=True,
    encoder_alone="EncoderModel",
    ignored=t5_layout.UNREAD_BIAS,
    absent={"token-classification": r"decoder_.*"},
)  # fmt: skip
