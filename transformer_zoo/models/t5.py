"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, Raffel et al. 2020, and
what came of it: T5 1.1, mT5 (Xue et al. 2020), ByT5 (Xue et al. 2021), UL2 (Tay et al. 2022), Flan-T5 (Chung et al.
2022), umT5 (Chung et al. 2023)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax

from transformer_zoo.nn import Compute, Mask, TokenEmbedding, heads, stack
from transformer_zoo.nn.checks import check_choice, check_labels, check_rates, check_source
from transformer_zoo.nn.encoder_decoder import HEAD_WEIGHTS, TIED, judge
from transformer_zoo.nn.encoder_decoder import example_inputs as example_inputs
from transformer_zoo.nn.positions import distances, encoder_inputs
from transformer_zoo.nn.pre_norm import (
    CONFIG,
    DEFAULTS,
    IGNORE,
    OUTPUT_WEIGHTS,
    WEIGHTS,
    DecoderBlock,
    PreNormDecoding,
    attention_rows,
    check_config,
    initializer,
    mlp,
    mlp_rows,
    read_activation,
    relative_bias,
    unscaled,
    write_projection,
)
from transformer_zoo.nn.pre_norm import init_cache as init_cache


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes. The defaults are T5's small size.

    Raises:
        ValueError: sizes below 1, too few buckets of distances, an unknown activation or model type, no rate of
            dropout, a special token outside of the vocabulary, no or equal labels.
    """

    model_type: str = "t5"  # which of the kin, by the name that config.json has for it
    vocab_size: int = 32128
    width: int = 512
    num_layers: int = 6  # of the encoder
    num_decoder_layers: int = 6
    num_heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 2048
    activation: str = "relu"
    gated_mlp: bool = False  # Shazeer 2020, as from T5 1.1 on
    num_buckets: int = 32  # of distances
    max_distance: int = 128  # from here on they share a bucket
    norm_epsilon: float = 1e-6
    init_scale: float = 1.0  # all fresh weights are multiplied with it
    dropout: float = 0.1
    head_dropout: float = 0.0
    tied: bool = True  # the output layer is the table of token embeddings
    scale_logits: bool = True  # by the root of the width: hidden states are divided by it before the output layer
    pad_id: int = 0
    eos_id: int | None = 1
    decoder_start_id: int = 0
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    max_length: ClassVar[int | None] = None  # any: only distances count

    def __post_init__(self) -> None:
        check_choice(self, "model_type", (HF_MODEL_TYPE, *HF_ALIASES))
        check_config(self)
        if self.model_type == "mt5" and self.scale_logits:
            raise ValueError(
                "scale_logits=True: an mt5 does not scale, and its config.json cannot say that this one does"
            )
        check_rates(self, "head_dropout")
        check_labels(self.labels)

    @property
    def bias_per_layer(self) -> bool:
        """Whether each layer has its own table of biases by distance, and not one for all layers of a stack."""
        return self.model_type == "umt5"


HF_MODEL_TYPE = "t5"
HF_ALIASES = {"mt5": "MT5", "umt5": "UMT5"}


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
PRESETS = {
    **{f"t5-{size}": (f"google-t5/t5-{size}", Config(**sizes)) for size, sizes in _V1_0.items()},
    **{f"t5-v1_1-{size}": (f"google/t5-v1_1-{size}", Config(**sizes, **_1_1)) for size, sizes in _V1_1.items()},
    **{f"flan-t5-{size}": (f"google/flan-t5-{size}", Config(**sizes, **_1_1)) for size, sizes in _V1_1.items()},
    **{
        f"mt5-{size}": (f"google/mt5-{size}", Config(model_type="mt5", vocab_size=250112, **sizes, **_1_1))
        for size, sizes in _V1_1.items()
    },
    **{
        f"umt5-{size}": (f"google/umt5-{size}", Config(model_type="umt5", vocab_size=256384, **sizes, **_1_1))
        for size, sizes in _V1_1.items()
        if size != "large"
    },
    **{
        f"byt5-{size}": (f"google/byt5-{size}", Config(vocab_size=384, **sizes, **_1_1))
        for size, sizes in _BYTES.items()
    },
    "ul2": ("google/ul2", _UL2),
    "flan-ul2": ("google/flan-ul2", _UL2),
}


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the norms come first, and only scale (section 2.1). That of the
    decoder is `nn.pre_norm.DecoderBlock`."""

    config: Config
    compute: Compute

    @nn.compact
    def __call__(
        self, x_BSD: jax.Array, layer: None, mask: Mask, ahead_BSS: jax.Array, bias_BHSS: jax.Array | None, train: bool
    ) -> tuple[jax.Array, None]:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = unscaled(cfg, compute, "attention")

        if bias_BHSS is None:
            bias_BHSS = relative_bias(cfg, compute, causal=False, name="relative_bias")(ahead_BSS)
        h_BSD = norm(name="attention_norm")(x_BSD)
        x_BSD += drop(attention(h_BSD, attention.keys_values(h_BSD), mask=mask, bias=bias_BHSS, scale=1.0, train=train))
        return x_BSD + drop(mlp(cfg, compute, norm(name="mlp_norm")(x_BSD), drop)), None


class Model(PreNormDecoding):
    """T5 with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        self.drop = nn.Dropout(cfg.dropout)
        self.token_embed = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, 1))
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute), norm()
        self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute), norm()
        if cfg.bias_per_layer:
            self.encoder_relative_bias = self.decoder_relative_bias = lambda ahead_BTS: None
        else:
            self.encoder_relative_bias = relative_bias(cfg, compute, causal=False)
            self.decoder_relative_bias = relative_bias(cfg, compute, causal=True)
        if self.task == "seq2seq-lm" and not cfg.tied:
            self.head = TokenEmbedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, cfg.width))
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, initializer(cfg, cfg.width), **judge(cfg, self.task))

    def encode(
        self,
        source_BS: jax.Array,
        valid_BS: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The source, read as a whole: [B, S, D]."""
        cfg = self.config
        check_source(cfg, source_BS, valid_BS, source_documents_BS)
        _, mask = encoder_inputs(source_BS, valid_BS, None, source_documents_BS)
        x_BSD = self.drop(self.token_embed(source_BS), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        ahead_BSS = distances(source_BS.shape[1])
        bias_BHSS = self.encoder_relative_bias(ahead_BSS)
        x_BSD, _ = stack(
            self.encoder_blocks, x_BSD, None, mask, ahead_BSS, bias_BHSS, train,
            length=cfg.num_layers, compute=self.compute,
        )  # fmt: skip
        return self.drop(self.encoder_norm(x_BSD), deterministic=not train)


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "T5Model",
    "seq2seq-lm": "T5ForConditionalGeneration",
    "sequence-classification": "T5ForSequenceClassification",
    "token-classification": "T5ForTokenClassification",
    "question-answering": "T5ForQuestionAnswering",
}


def _projection(value: str | None, theirs: Mapping[str, Any]) -> str:
    """Their name of the hidden layer: of an activation, with "gated-" before it if there is a gate."""
    return ("relu" if theirs["model_type"] == "t5" else "gated-gelu") if value is None else value


def _activation(value: str | None, theirs: Mapping[str, Any]) -> str:
    return read_activation(_projection(value, theirs))


def _scale_logits(value: bool | None, theirs: Mapping[str, Any]) -> bool:
    """Whether logits are scaled. transformers 5 says it; before, it followed from the tie, and an mT5 never does."""
    return theirs["model_type"] != "mt5" and (theirs["tie_word_embeddings"] if value is None else value)


HF_CONFIG = CONFIG | {
    "model_type": "model_type",
    "activation": ("feed_forward_proj", _activation, write_projection),
    "gated_mlp": (
        "feed_forward_proj",
        lambda value, theirs: _projection(value, theirs).startswith("gated-"),
        write_projection,
    ),
    "head_dropout": "classifier_dropout",
    "scale_logits": ("scale_decoder_outputs", _scale_logits, lambda scale, cfg: scale),
    "problem": "problem_type",
}
HF_DEFAULTS = DEFAULTS | {
    "model_type": HF_MODEL_TYPE,
    "feed_forward_proj": None,
    "classifier_dropout": 0.0,
    "problem_type": None,
}
HF_FIXED = {"is_decoder": False}
HF_UNNAMED = ("umt5",)  # published without its model_type
HF_RENAMED = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}  # of the first checkpoints
HF_PREFIX = "transformer."
HF_BARE = ("base", "seq2seq-lm", "question-answering")
HF_ABSENT = {"token-classification": r"decoder_.*"}

_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
HF_WEIGHTS = (
    *WEIGHTS,
    *attention_rows("encoder.block.*.layer.0.SelfAttention", "encoder_blocks/attention"),
    (f"encoder.block.0.{_BIAS}",                          "encoder_relative_bias/embedding",           "R H -> R H"),
    (f"encoder.block.*.{_BIAS}",                          "encoder_blocks/relative_bias/embedding",    "R H -> R H"),
    (f"decoder.block.*.{_BIAS}",                          "decoder_blocks/relative_bias/embedding",    "R H -> R H"),
)  # fmt: skip


def hf_weights(config: Config) -> tuple[tuple[str, str, str], ...]:
    """The rows of a configuration."""
    return (*HF_WEIGHTS, *mlp_rows(config.gated_mlp))


HF_HEADS = HEAD_WEIGHTS | {
    "seq2seq-lm": OUTPUT_WEIGHTS,
    "token-classification": (
        ("classifier.weight", "head/scores/kernel", "C D -> D C"),
        ("classifier.bias", "head/scores/bias", "C -> C"),
    ),
}
HF_TIED = TIED
HF_TIED_BY_TENSORS = True
HF_IGNORE = IGNORE
