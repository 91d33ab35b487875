"""T5: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, Raffel et al. 2020, and
what came of it: T5 1.1, mT5 (Xue et al. 2020), ByT5 (Xue et al. 2021), UL2 (Tay et al. 2022), Flan-T5 (Chung et al.
2022), umT5 (Chung et al. 2023)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import Cache, Compute, Embedding, Mask, Output, cache, heads, stack
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import (
    check_choice,
    check_labels,
    check_rates,
    check_sizes,
    check_source,
    check_target,
    check_token,
)
from transformer_zoo.nn.encoder_decoder import JUDGES, decoder_stack, judged, shifted
from transformer_zoo.nn.positions import across, distances, of_rows, place
from transformer_zoo.nn.pre_norm import DecoderBlock, initializer, mlp, relative_bias, unscaled


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
        check_sizes(self, "vocab_size", "width", "num_layers", "num_decoder_layers", "num_heads", "head_dim", "mlp_dim")
        check_sizes(self, "num_buckets", "max_distance")
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
            raise ValueError(
                f"num_buckets={self.num_buckets} and max_distance={self.max_distance}: there must be at least 4 "
                "buckets, half of which are for a distance each, and distances beyond these"
            )
        if self.model_type == "mt5" and self.scale_logits:
            raise ValueError(
                "scale_logits=True: an mt5 does not scale, and its config.json cannot say that this one does"
            )
        check_activation(self.activation)
        check_rates(self, "dropout", "head_dropout")
        for name in ("pad_id", "eos_id", "decoder_start_id"):
            check_token(self, name)
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


class Model(nn.Module):
    """T5 with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute = self.config, self.compute
        norm = functools.partial(compute.rms_norm, epsilon=cfg.norm_epsilon)
        self.drop = nn.Dropout(cfg.dropout)
        self.token_embed = Embedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, 1))
        self.encoder_blocks, self.encoder_norm = EncoderBlock(cfg, compute), norm()
        if not cfg.bias_per_layer:
            self.encoder_relative_bias = relative_bias(cfg, compute, causal=False)
        if self.task != "token-classification":
            self.decoder_blocks, self.decoder_norm = DecoderBlock(cfg, compute), norm()
            if not cfg.bias_per_layer:
                self.decoder_relative_bias = relative_bias(cfg, compute, causal=True)
        if self.task == "seq2seq-lm" and not cfg.tied:
            self.head = Embedding(cfg.vocab_size, cfg.width, compute, initializer(cfg, cfg.width))
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, initializer(cfg, cfg.width), **judge(cfg, self.task))

    def __call__(
        self,
        source_BS: jax.Array | None,
        target_BT: jax.Array | None = None,
        valid_BS: jax.Array | None = None,
        target_valid_BT: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        target_documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Encodes a source and reads a target, from left to right, beside it.

        Args:
            source_BS: ids, int[B, S]. None: the cache has seen the source.
            target_BT: what the decoder reads, ids, int[B, T]; it begins with `decoder_start_id`. None: the source, for
                the tasks that judge it; that which judges tokens has no decoder.
            valid_BS, target_valid_BT: which tokens are real; the rest is padding, on the left or on the right. None:
                all.
            source_documents_BS, target_documents_BT: number the documents packed in a row, alike on both sides;
                attention does not cross them.
            cache: of the targets before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, an empty batch, shapes that differ, no target where one is
                needed, no end of text in a row that is judged by it.
        """
        if self.task == "token-classification":
            encoded_BSD = self.encode(source_BS, valid_BS, source_documents_BS, train)
            return Output(hidden_BTD=encoded_BSD, logits=self.head(encoded_BSD, train), encoded_BSD=encoded_BSD)
        if self.task in JUDGES and target_BT is None:
            check_source(self.config, source_BS, valid_BS, source_documents_BS)
            target_BT, target_valid_BT = shifted(source_BS, valid_BS, self.config.decoder_start_id), valid_BS
        check_target(self.config, target_BT, target_valid_BT, target_documents_BT)
        encoded_BSD = None
        if cache is None or cache.cross is None:
            encoded_BSD = self.encode(source_BS, valid_BS, source_documents_BS, train)
        output = self.decode(
            target_BT, encoded_BSD, valid_BS, target_valid_BT, source_documents_BS, target_documents_BT, cache, train
        )
        return judged(self, output, source_BS, valid_BS, train)

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
        _, mask = of_rows(source_BS, valid_BS, None, source_documents_BS)
        x_BSD = self.drop(self.token_embed(source_BS), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        ahead_BSS = distances(source_BS.shape[1])
        bias_BHSS = None if cfg.bias_per_layer else self.encoder_relative_bias(ahead_BSS)
        x_BSD, _ = stack(
            self.encoder_blocks, x_BSD, None, mask, ahead_BSS, bias_BHSS, train,
            length=cfg.num_layers, compute=self.compute,
        )  # fmt: skip
        return self.drop(self.encoder_norm(x_BSD), deterministic=not train)

    def decode(
        self,
        target_BT: jax.Array,
        encoded_BSD: jax.Array | None,
        valid_BS: jax.Array | None = None,
        target_valid_BT: jax.Array | None = None,
        source_documents_BS: jax.Array | None = None,
        target_documents_BT: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
    ) -> Output:
        """Reads a target beside an encoded source, of which a cache keeps the keys and values: after the first call
        with it `encoded_BSD` may be None."""
        cfg = self.config
        check_target(cfg, target_BT, target_valid_BT, target_documents_BT)
        start = 0 if cache is None else cache.length
        _, mask, cache = place(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = across(target_BT, encoded_BSD, valid_BS, source_documents_BS, target_documents_BT, cache)

        x_BTD = self.drop(self.token_embed(target_BT), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        ahead_BTS = distances(target_BT.shape[1], cache)
        bias_BHTS = None if cfg.bias_per_layer else self.decoder_relative_bias(ahead_BTS)
        x_BTD, cache = decoder_stack(
            self.decoder_blocks, x_BTD, cache, mask, ahead_BTS, bias_BHTS, start, encoded_BSD, cross_mask, train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        hidden_BTD = self.drop(self.decoder_norm(x_BTD), deterministic=not train)
        return Output(
            hidden_BTD=hidden_BTD,
            logits=self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "seq2seq-lm" else None,
            cache=cache,
            encoded_BSD=encoded_BSD,
        )

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        table = self.token_embed if self.config.tied else self.head
        return table.attend(hidden_BTD * self.config.width**-0.5 if self.config.scale_logits else hidden_BTD)


def judge(cfg: Config, task: str) -> dict[str, Any]:
    """How the head of a task judges: of sequences with a hidden layer."""
    dropout = {"dropout": cfg.head_dropout}
    return {
        "sequence-classification": {"activation": "tanh", "hidden_dropout": cfg.head_dropout, **dropout},
        "token-classification": dropout,
    }.get(task, {})


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for what the decoder reads.

    Raises:
        ValueError: no slots.
    """
    if length < 1:
        raise ValueError(f"a cache of {length} tokens: ask for at least 1")
    return cache.empty(config.num_decoder_layers, batch, length, config.num_heads, config.head_dim, dtype)


def example_inputs(config: Config, task: str) -> tuple[Any, ...]:
    """Inputs of the right shapes for a task, to initialise and to trace."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return (ids,) if task == "token-classification" else (ids, ids)


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
    # Behind a gate, "gelu" has always been the approximation.
    names = {"gated-gelu": "gelu_new", "gated-gelu_python": "gelu"}
    name = _projection(value, theirs)
    return names.get(name, name.removeprefix("gated-"))


def _write_projection(_: Any, cfg: Config) -> str:
    names = {"gelu_new": "gelu", "gelu": "gelu_python"}
    return "gated-" + names.get(cfg.activation, cfg.activation) if cfg.gated_mlp else cfg.activation


def _scale_logits(value: bool | None, theirs: Mapping[str, Any]) -> bool:
    """Whether logits are scaled. transformers 5 says it; before, it followed from the tie, and an mT5 never does."""
    return theirs["model_type"] != "mt5" and (theirs["tie_word_embeddings"] if value is None else value)


HF_CONFIG = {
    "model_type": "model_type",
    "vocab_size": "vocab_size",
    "width": "d_model",
    "num_layers": "num_layers",
    "num_decoder_layers": (
        "num_decoder_layers",
        lambda layers, theirs: theirs.get("num_layers") if layers is None else layers,
        lambda layers, cfg: layers,
    ),
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "activation": ("feed_forward_proj", _activation, _write_projection),
    "gated_mlp": (
        "feed_forward_proj",
        lambda value, theirs: _projection(value, theirs).startswith("gated-"),
        _write_projection,
    ),
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_epsilon": "layer_norm_epsilon",
    "init_scale": "initializer_factor",
    "dropout": "dropout_rate",
    "head_dropout": "classifier_dropout",
    "tied": "tie_word_embeddings",
    "scale_logits": ("scale_decoder_outputs", _scale_logits, lambda scale, cfg: scale),
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": (
        "decoder_start_token_id",
        lambda start, theirs: theirs["pad_token_id"] if start is None else start,
        lambda start, cfg: start,
    ),
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "model_type": HF_MODEL_TYPE,
    "num_decoder_layers": None,
    "d_kv": 64,
    "feed_forward_proj": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "dropout_rate": 0.1,
    "classifier_dropout": 0.0,
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": None,
    "problem_type": None,
}
HF_FIXED = {"is_decoder": False}
HF_UNNAMED = ("umt5",)  # published without its model_type
HF_RENAMED = {"T5WithLMHeadModel": "T5ForConditionalGeneration"}  # of the first checkpoints
HF_PREFIX = "transformer."
HF_BARE = ("base", "seq2seq-lm", "question-answering")
HF_ABSENT = {"token-classification": r"decoder_.*"}


def _attention(theirs: str, ours: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{theirs}.q.weight", f"{ours}/query/kernel", "(H K) D -> D H K"),
        (f"{theirs}.k.weight", f"{ours}/key/kernel",   "(H K) D -> D H K"),
        (f"{theirs}.v.weight", f"{ours}/value/kernel", "(H K) D -> D H K"),
        (f"{theirs}.o.weight", f"{ours}/out/kernel",   "D (H K) -> H K D"),
    )  # fmt: skip


_BIAS = "layer.0.SelfAttention.relative_attention_bias.weight"
HF_WEIGHTS = (
    # theirs                                              ours                                       theirs -> ours
    ("shared.weight",                                     "token_embed/embedding",                     "V D -> V D"),
    (f"encoder.block.0.{_BIAS}",                          "encoder_relative_bias/embedding",           "R H -> R H"),
    (f"encoder.block.*.{_BIAS}",                          "encoder_blocks/relative_bias/embedding",    "R H -> R H"),
    ("encoder.block.*.layer.0.layer_norm.weight",         "encoder_blocks/attention_norm/scale",       "D -> D"),
    *_attention("encoder.block.*.layer.0.SelfAttention",  "encoder_blocks/attention"),
    ("encoder.block.*.layer.1.layer_norm.weight",         "encoder_blocks/mlp_norm/scale",             "D -> D"),
    ("encoder.block.*.layer.1.DenseReluDense.wi_0.weight", "encoder_blocks/mlp_gate/kernel",           "F D -> D F"),
    ("encoder.block.*.layer.1.DenseReluDense.wo.weight",  "encoder_blocks/mlp_down/kernel",            "D F -> F D"),
    ("encoder.final_layer_norm.weight",                   "encoder_norm/scale",                        "D -> D"),
    (f"decoder.block.0.{_BIAS}",                          "decoder_relative_bias/embedding",           "R H -> R H"),
    (f"decoder.block.*.{_BIAS}",                          "decoder_blocks/relative_bias/embedding",    "R H -> R H"),
    ("decoder.block.*.layer.0.layer_norm.weight",         "decoder_blocks/attention_norm/scale",       "D -> D"),
    *_attention("decoder.block.*.layer.0.SelfAttention",  "decoder_blocks/attention"),
    ("decoder.block.*.layer.1.layer_norm.weight",         "decoder_blocks/cross_attention_norm/scale", "D -> D"),
    *_attention("decoder.block.*.layer.1.EncDecAttention", "decoder_blocks/cross_attention"),
    ("decoder.block.*.layer.2.layer_norm.weight",         "decoder_blocks/mlp_norm/scale",             "D -> D"),
    ("decoder.block.*.layer.2.DenseReluDense.wi_0.weight", "decoder_blocks/mlp_gate/kernel",           "F D -> D F"),
    ("decoder.block.*.layer.2.DenseReluDense.wo.weight",  "decoder_blocks/mlp_down/kernel",            "D F -> F D"),
    ("decoder.final_layer_norm.weight",                   "decoder_norm/scale",                        "D -> D"),
)  # fmt: skip


def hf_weights(config: Config) -> tuple[tuple[str, str, str], ...]:
    """The rows of a configuration: with a gate beside it, the hidden layer has another name."""
    up = "wi_1" if config.gated_mlp else "wi"
    return (
        *HF_WEIGHTS,
        (f"encoder.block.*.layer.1.DenseReluDense.{up}.weight", "encoder_blocks/mlp_up/kernel", "F D -> D F"),
        (f"decoder.block.*.layer.2.DenseReluDense.{up}.weight", "decoder_blocks/mlp_up/kernel", "F D -> D F"),
    )


HF_HEADS = {
    "seq2seq-lm": (("lm_head.weight", "head/embedding", "V D -> V D"),),
    "sequence-classification": (
        ("classification_head.dense.weight", "head/dense/kernel", "E D -> D E"),
        ("classification_head.dense.bias", "head/dense/bias", "E -> E"),
        ("classification_head.out_proj.weight", "head/scores/kernel", "C D -> D C"),
        ("classification_head.out_proj.bias", "head/scores/bias", "C -> C"),
    ),
    "token-classification": (
        ("classifier.weight", "head/scores/kernel", "C D -> D C"),
        ("classifier.bias", "head/scores/bias", "C -> C"),
    ),
    "question-answering": (
        ("qa_outputs.weight", "head/scores/kernel", "C D -> D C"),
        ("qa_outputs.bias", "head/scores/bias", "C -> C"),
    ),
}
HF_TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
HF_TIED_BY_TENSORS = True
HF_IGNORE = (
    (
        r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
        "a table of the first checkpoints, which was never read: across, there are no distances",
    ),
)
