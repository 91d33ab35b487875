"""BART: Denoising Sequence-to-Sequence Pre-training for Natural Language Generation, Translation, and Comprehension,
Lewis et al. 2019."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import Cache, Compute, Embedding, Output, heads
from transformer_zoo.nn import cache as caches
from transformer_zoo.nn.activations import check_activation
from transformer_zoo.nn.checks import (
    check_heads,
    check_labels,
    check_rates,
    check_sizes,
    check_source,
    check_target,
    check_token,
)
from transformer_zoo.nn.encoder_decoder import (
    BLOCK_WEIGHTS,
    JUDGES,
    NORM_EPSILON,
    DecoderBlock,
    EncoderBlock,
    LogitsBias,
    decoder_stack,
    judged,
    shifted,
)
from transformer_zoo.nn.positions import across, of_rows, place
from transformer_zoo.nn.stack import stack


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The architecture: what a checkpoint fixes. The defaults are BART's base size.

    Raises:
        ValueError: sizes below 1, heads that do not divide the width, an unknown activation, no rate of dropout, a
            special token outside of the vocabulary, no or equal labels.
    """

    vocab_size: int = 50265
    max_length: int = 1024  # of sources and of targets
    width: int = 768
    num_layers: int = 6  # of the encoder
    num_decoder_layers: int = 6
    num_heads: int = 12
    num_decoder_heads: int = 12
    mlp_dim: int = 3072
    mlp_decoder_dim: int = 3072
    activation: str = "gelu"
    scale_embedding: bool = False  # by the root of the width
    init_std: float = 0.02
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.1
    head_dropout: float = 0.0
    pad_id: int = 1
    eos_id: int | None = 2
    decoder_start_id: int = 2
    forced_bos_id: int | None = None  # the first token of whatever is generated
    forced_eos_id: int | None = 2  # the last one, where a text has to end
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem: str | None = None  # what a classifier of sequences is for, as config.json's problem_type says

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "max_length", "width", "num_layers", "num_decoder_layers", "num_heads")
        check_sizes(self, "num_decoder_heads", "mlp_dim", "mlp_decoder_dim")
        check_heads(self.width, self.num_heads)
        check_heads(self.width, self.num_decoder_heads, "num_decoder_heads")
        check_activation(self.activation)
        check_rates(self, "dropout", "attention_dropout", "activation_dropout", "head_dropout")
        for name in ("pad_id", "eos_id", "decoder_start_id", "forced_bos_id", "forced_eos_id"):
            check_token(self, name)
        check_labels(self.labels)


_LARGE = {
    "width": 1024, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 16, "num_decoder_heads": 16,
    "mlp_dim": 4096, "mlp_decoder_dim": 4096,
}  # fmt: skip
_TUNED = {**_LARGE, "attention_dropout": 0.0, "activation_dropout": 0.0}
PRESETS = {
    "bart-base": ("facebook/bart-base", Config()),
    "bart-large": ("facebook/bart-large", Config(**_LARGE)),
    "bart-large-cnn": ("facebook/bart-large-cnn", Config(vocab_size=50264, forced_bos_id=0, **_TUNED)),
    "bart-large-xsum": ("facebook/bart-large-xsum", Config(vocab_size=50264, **_TUNED)),
    "bart-large-mnli": (
        "facebook/bart-large-mnli",
        Config(labels=("contradiction", "neutral", "entailment"), **_TUNED),
    ),
}


class Model(nn.Module):
    """BART with the head of a task, one of `TASKS`."""

    config: Config
    task: str = "seq2seq-lm"
    compute: Compute = Compute()

    def setup(self) -> None:
        cfg, compute, init = self.config, self.compute, initializer(self.config)
        norm = functools.partial(compute.layer_norm, epsilon=NORM_EPSILON)
        table = functools.partial(
            nn.Embed, OFFSET + cfg.max_length, cfg.width, dtype=compute.dtype, param_dtype=compute.param_dtype,
            embedding_init=init,
        )  # fmt: skip
        self.token_embed = Embedding(cfg.vocab_size, cfg.width, compute, init)
        self.drop = nn.Dropout(cfg.dropout)
        self.encoder_position_embed, self.encoder_embed_norm = table(), norm()
        self.encoder_blocks = EncoderBlock(cfg, compute, norm_first=False, init=init)
        self.decoder_position_embed, self.decoder_embed_norm = table(), norm()
        self.decoder_blocks = DecoderBlock(cfg, compute, norm_first=False, init=init)
        if self.task == "seq2seq-lm":
            self.lm_head = LogitsBias(cfg.vocab_size, compute)
        if classes := heads.classes(self.task, cfg.labels):
            self.head = heads.Classifier(classes, compute, init, **judge(cfg, self.task))

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
                the tasks that judge it.
            valid_BS, target_valid_BT: which tokens are real; the rest is padding, on the left or on the right. None:
                all.
            source_documents_BS, target_documents_BT: number the documents packed in a row, alike on both sides;
                attention does not cross them.
            cache: of the targets before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, too long a row, an empty batch, shapes that differ, no target
                where one is needed, no end of text in a row that is judged by it.
        """
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
        positions_BS, mask = of_rows(source_BS, valid_BS, None, source_documents_BS)

        x_BSD = self.embed(source_BS) + self.encoder_position_embed(OFFSET + positions_BS)
        x_BSD = self.drop(self.encoder_embed_norm(x_BSD), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        return stack(self.encoder_blocks, x_BSD, None, mask, train, length=cfg.num_layers, compute=self.compute)[0]

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
        positions_BT, mask, cache = place(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = across(target_BT, encoded_BSD, valid_BS, source_documents_BS, target_documents_BT, cache)

        x_BTD = self.embed(target_BT) + self.decoder_position_embed(OFFSET + positions_BT)
        x_BTD = self.drop(self.decoder_embed_norm(x_BTD), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        hidden_BTD, cache = decoder_stack(
            self.decoder_blocks, x_BTD, cache, mask, start, encoded_BSD, cross_mask, train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        logits_BTV = self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "seq2seq-lm" else None
        return Output(hidden_BTD=hidden_BTD, logits=logits_BTV, cache=cache, encoded_BSD=encoded_BSD)

    def embed(self, tokens_BT: jax.Array) -> jax.Array:
        """What stands for the tokens of either side: [B, T, D]."""
        return self.token_embed(tokens_BT) * (self.config.width**0.5 if self.config.scale_embedding else 1.0)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        return self.lm_head(self.token_embed.attend(hidden_BTD))


OFFSET = 2  # the rows of a table of positions that stand before the first position, and that nothing reads


def judge(cfg: Config, task: str) -> dict[str, Any]:
    """How the head of a task judges: of sequences with a hidden layer."""
    whole = {"activation": "tanh", "hidden_dropout": cfg.head_dropout, "dropout": cfg.head_dropout}
    return whole if task == "sequence-classification" else {}


def initializer(cfg: Config) -> Any:
    """For all weights: a normal distribution."""
    return nn.initializers.normal(cfg.init_std)


def init_cache(config: Config, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for what the decoder reads.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")
    heads, head_dim = config.num_decoder_heads, config.width // config.num_decoder_heads
    return caches.empty(config.num_decoder_layers, batch, length, heads, head_dim, dtype)


def example_inputs(config: Config, task: str) -> tuple[Any, ...]:
    """Inputs of the right shapes for a task, to initialise and to trace."""
    return (jnp.zeros((1, 1), jnp.int32),) * 2


# ---- the published checkpoints ------------------------------------------------------------------------------------

TASKS = {
    "base": "BartModel",
    "seq2seq-lm": "BartForConditionalGeneration",
    "sequence-classification": "BartForSequenceClassification",
    "question-answering": "BartForQuestionAnswering",
}
HF_MODEL_TYPE = "bart"


def _forced_bos(value: int | None, theirs: Mapping[str, Any]) -> int | None:
    """The first files say but that the token which begins a text is forced."""
    return theirs.get("bos_token_id", 0) if value is None and theirs.get("force_bos_token_to_be_generated") else value


HF_CONFIG = {
    "vocab_size": "vocab_size",
    "max_length": "max_position_embeddings",
    "width": "d_model",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "num_heads": "encoder_attention_heads",
    "num_decoder_heads": "decoder_attention_heads",
    "mlp_dim": "encoder_ffn_dim",
    "mlp_decoder_dim": "decoder_ffn_dim",
    "activation": "activation_function",
    "scale_embedding": "scale_embedding",
    "init_std": "init_std",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "head_dropout": "classifier_dropout",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": "decoder_start_token_id",
    "forced_bos_id": ("forced_bos_token_id", _forced_bos, lambda token, cfg: token),
    "forced_eos_id": "forced_eos_token_id",
    "problem": "problem_type",
}
HF_DEFAULTS = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "init_std": 0.02,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "classifier_dropout": 0.0,
    "pad_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_bos_token_id": None,
    "forced_eos_token_id": 2,
    "num_labels": 3,
    "problem_type": None,
}
HF_FIXED = {
    "is_decoder": False,
    "tie_word_embeddings": True,
    "encoder_layerdrop": 0.0,
    "decoder_layerdrop": 0.0,
    # What one class had for BART and for its kin, when these were first published:
    "normalize_before": False,
    "normalize_embedding": True,
    "add_final_layer_norm": False,
    "static_position_embeddings": False,
}
HF_PREFIX = "model."


def _side(side: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{side}.embed_positions.weight",             f"{side}_position_embed/embedding", "T D -> T D"),
        (f"{side}.layernorm_embedding.weight",         f"{side}_embed_norm/scale",      "D -> D"),
        (f"{side}.layernorm_embedding.bias",           f"{side}_embed_norm/bias",       "D -> D"),
    )  # fmt: skip


HF_WEIGHTS = (
    # theirs                                           ours                             layout, theirs -> ours
    ("shared.weight",                                  "token_embed/embedding",         "V D -> V D"),
    *_side("encoder"),
    *_side("decoder"),
    *BLOCK_WEIGHTS,
)  # fmt: skip
HF_HEADS = {
    "seq2seq-lm": (("final_logits_bias",               "lm_head/bias",                  "1 V -> V"),),
    "sequence-classification": (
        ("classification_head.dense.weight",           "head/dense/kernel",             "E D -> D E"),
        ("classification_head.dense.bias",             "head/dense/bias",               "E -> E"),
        ("classification_head.out_proj.weight",        "head/scores/kernel",            "C D -> D C"),
        ("classification_head.out_proj.bias",          "head/scores/bias",              "C -> C"),
    ),
    "question-answering": (
        ("qa_outputs.weight",                          "head/scores/kernel",            "C D -> D C"),
        ("qa_outputs.bias",                            "head/scores/bias",              "C -> C"),
    ),
}  # fmt: skip
HF_TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
HF_ZERO = ("final_logits_bias",)  # and so it is where a file has none
HF_IGNORE = ((r"(encoder|decoder)\.version", "the number of a format of fairseq, in which the first files were made"),)
