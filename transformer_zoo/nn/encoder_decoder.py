"""What all encoder-decoders are called with; the blocks of the first (Vaswani et al. 2017, section 3) and of those that
moved its norms, and a model of them. A family's Config has the sizes and rates that BART's has."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn import cache as caches
from transformer_zoo.nn import pooling
from transformer_zoo.nn.activations import ACTIVATIONS, check_activation
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.cache import Cache
from transformer_zoo.nn.checks import (
    check_heads,
    check_like,
    check_rates,
    check_sizes,
    check_source,
    check_target,
    check_token,
    concrete,
)
from transformer_zoo.nn.compute import Compute
from transformer_zoo.nn.embedding import padded_vocab
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.output import Output
from transformer_zoo.nn.positions import cross_inputs, decoder_inputs, encoder_inputs, sinusoids
from transformer_zoo.nn.stack import stack

NORM_EPSILON = 1e-5


class EncoderDecoder(nn.Module):
    """What encoder-decoders of all families are called with. A family has `encode` and `decode`."""

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
            target_BT: what the decoder reads, ids, int[B, T]; it begins with `decoder_start_id`, or with a language.
                None: the source, for the tasks that judge it; that which judges tokens has no decoder.
            valid_BS, target_valid_BT: which tokens are real; the rest is padding, on the left or on the right. None:
                all.
            source_documents_BS, target_documents_BT: number the documents packed in a row, alike on both sides, from 1;
                attention does not cross them.
            cache: of the targets before these, from `init_cache` or an earlier call.
            train: with dropout, for which `rngs={"dropout": key}` is needed.

        Raises:
            ValueError: ids outside of the vocabulary, more tokens than there are positions, an empty batch, shapes that
                differ, no target where one is needed, no end of text in a row that is judged by it.
        """
        if self.task == "token-classification":
            encoded_BSD = self.encode(source_BS, valid_BS, source_documents_BS, train)
            return Output(hidden_BTD=encoded_BSD, logits=self.head(encoded_BSD, train), encoded_BSD=encoded_BSD)
        if self.task in JUDGES and target_BT is None:
            check_source(self.config, source_BS, valid_BS, source_documents_BS)
            target_BT, target_valid_BT = shifted(source_BS, valid_BS, self.start(source_BS, valid_BS)), valid_BS
        check_target(self.config, target_BT, target_valid_BT, target_documents_BT)
        encoded_BSD = None
        if cache is None or cache.cross is None:
            encoded_BSD = self.encode(source_BS, valid_BS, source_documents_BS, train)
        output = self.decode(
            target_BT, encoded_BSD, valid_BS, target_valid_BT, source_documents_BS, target_documents_BT, cache, train
        )
        return judged(self, output, source_BS, valid_BS, train)

    def start(self, source_BS: jax.Array, valid_BS: jax.Array | None) -> Any:
        """What the decoder reads first where it judges a source: a token, or one for each row, [B, 1]."""
        return self.config.decoder_start_id


class Transformer(EncoderDecoder):
    """An encoder and a decoder of the blocks below. A family's `setup` makes what is used here."""

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
        positions_BS, mask = encoder_inputs(source_BS, valid_BS, None, source_documents_BS)

        x_BSD = self.drop(self.embed("encoder", source_BS, positions_BS), deterministic=not train)
        self.sow("intermediates", "encoder_embedded_BTD", x_BSD)
        x_BSD, _ = stack(self.encoder_blocks, x_BSD, None, mask, train, length=cfg.num_layers, compute=self.compute)
        return self.encoder_norm(x_BSD) if self.encoder_blocks.norm_first else x_BSD

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
        positions_BT, mask, cache = decoder_inputs(target_BT, target_valid_BT, None, target_documents_BT, cache)
        cross_mask, cache = cross_inputs(
            target_BT, encoded_BSD, valid_BS, source_documents_BS, target_documents_BT, cache
        )

        x_BTD = self.drop(self.embed("decoder", target_BT, positions_BT), deterministic=not train)
        self.sow("intermediates", "decoder_embedded_BTD", x_BTD)
        x_BTD, cache = decoder_stack(
            self.decoder_blocks, x_BTD, cache, mask, start, encoded_BSD, cross_mask, train,
            length=cfg.num_decoder_layers, compute=self.compute,
        )  # fmt: skip
        hidden_BTD = self.decoder_norm(x_BTD) if self.decoder_blocks.norm_first else x_BTD
        logits_BTV = self.logits(hidden_BTD)[..., : cfg.vocab_size] if self.task == "seq2seq-lm" else None
        return Output(hidden_BTD=hidden_BTD, logits=logits_BTV, cache=cache, encoded_BSD=encoded_BSD)

    def embed(self, side: str, tokens_BT: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """What stands for the tokens of a side, and for where they are, [B, T, D]: with sinusoids (section 3.5)."""
        table_TD = jnp.asarray(sinusoids(self.config.max_length, self.config.width), self.compute.dtype)
        return self.scaled(tokens_BT) + table_TD[positions_BT]

    def scaled(self, tokens_BT: jax.Array) -> jax.Array:
        """What stands for the tokens alone."""
        return self.token_embed(tokens_BT) * (self.config.width**0.5 if self.config.scale_embedding else 1.0)

    def logits(self, hidden_BTD: jax.Array) -> jax.Array:
        """Scores [B, T, V] of the next token, over the padded vocabulary: a loss may take them in pieces."""
        return self.lm_head(self.token_embed.attend(hidden_BTD))


def check_config(cfg: Any) -> None:
    """Raises ValueError unless the sizes, rates and special tokens that all these families have can be."""
    check_sizes(cfg, "vocab_size", "max_length", "width", "num_layers", "num_decoder_layers", "num_heads")
    check_sizes(cfg, "num_decoder_heads", "mlp_dim", "mlp_decoder_dim")
    check_heads(cfg.width, cfg.num_heads)
    check_heads(cfg.width, cfg.num_decoder_heads, "num_decoder_heads")
    check_activation(cfg.activation)
    check_rates(cfg, "dropout", "attention_dropout", "activation_dropout")
    for name in ("pad_id", "eos_id", "decoder_start_id", "forced_eos_id"):
        check_token(cfg, name)


def init_cache(config: Any, batch: int, length: int, dtype: Any = jnp.float32) -> Cache:
    """An empty cache with `length` slots a row for what the decoder reads.

    Raises:
        ValueError: more slots than the model has positions, or none.
    """
    if not 0 < length <= config.max_length:
        raise ValueError(f"a cache of {length} tokens: the model has {config.max_length} positions")
    heads, head_dim = config.num_decoder_heads, config.width // config.num_decoder_heads
    return caches.empty(config.num_decoder_layers, batch, length, heads, head_dim, dtype)


def example_inputs(config: Any, task: str) -> tuple[Any, ...]:
    """Inputs of the right shapes for a task, to initialise and to trace."""
    return (jnp.zeros((1, 1), jnp.int32),) * (1 if task == "token-classification" else 2)


class EncoderBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)); with `norm_first`, x + attention(norm(x)) and x + mlp(norm(x))."""

    config: Any
    compute: Compute
    norm_first: bool
    init: Any

    @nn.compact
    def __call__(self, x_BSD: jax.Array, layer: None, mask: Mask, train: bool) -> tuple[jax.Array, None]:
        cfg, (before, behind) = self.config, _norms(self)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention = _attention(self, cfg.num_heads, "attention")

        h_BSD = before("attention", x_BSD)
        y_BSD = attention(h_BSD, attention.keys_values(h_BSD), mask=mask, train=train)
        x_BSD = behind("attention", x_BSD + drop(y_BSD))
        return behind("mlp", x_BSD + drop(_mlp(self, cfg.mlp_dim, before("mlp", x_BSD), train))), None


class DecoderBlock(nn.Module):
    """The same with causal attention, and between the two attention to the encoded source."""

    config: Any
    compute: Compute
    norm_first: bool
    init: Any

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, layer: Any, mask: Mask, start: Any, encoded_BSD: jax.Array | None, cross_mask: Mask,
        train: bool,
    ) -> tuple[jax.Array, Any]:  # fmt: skip
        cfg, (kv, cross), (before, behind) = self.config, layer, _norms(self)
        drop = nn.Dropout(cfg.dropout, deterministic=not train)
        attention, cross_attention = (
            _attention(self, cfg.num_decoder_heads, name) for name in ("attention", "cross_attention")
        )

        h_BTD = before("attention", x_BTD)
        kv_now = caches.append(kv, attention.keys_values(h_BTD), start)
        x_BTD = behind(
            "attention", x_BTD + drop(attention(h_BTD, caches.from_cache_layout(kv_now), mask=mask, train=train))
        )

        h_BTD = before("cross_attention", x_BTD)
        cross_now = caches.to_cache_layout(cross_attention.keys_values(encoded_BSD)) if cross is None else cross
        y_BTD = cross_attention(h_BTD, caches.from_cache_layout(cross_now), mask=cross_mask, train=train)
        x_BTD = behind("cross_attention", x_BTD + drop(y_BTD))

        x_BTD = behind("mlp", x_BTD + drop(_mlp(self, cfg.mlp_decoder_dim, before("mlp", x_BTD), train)))
        # For the cache, if there is one; what it holds of the source already is not copied.
        return x_BTD, None if kv is None else (kv_now, cross_now if cross is None else None)


def _norms(block: Any) -> tuple[Callable[[str, jax.Array], jax.Array], ...]:
    """What becomes of a layer's input, and of the sum of its input and its output; one of the two is normalised."""
    norm = functools.partial(block.compute.layer_norm, epsilon=NORM_EPSILON)
    normed, same = lambda name, x_BTD: norm(name=f"{name}_norm")(x_BTD), lambda name, x_BTD: x_BTD
    return (normed, same) if block.norm_first else (same, normed)


def _attention(block: Any, num_heads: int, name: str) -> Attention:
    cfg = block.config
    return Attention(
        num_heads, cfg.width // num_heads, block.compute, dropout=cfg.attention_dropout,
        init=block.init, out_init=block.init, name=name,
    )  # fmt: skip


def _mlp(block: Any, mlp_dim: int, x_BTD: jax.Array, train: bool) -> jax.Array:
    cfg, dense = block.config, functools.partial(block.compute.dense, kernel_init=block.init)
    h_BTF = ACTIVATIONS[cfg.activation](dense(mlp_dim, name="mlp_up")(x_BTD))
    h_BTF = nn.Dropout(cfg.activation_dropout, deterministic=not train)(h_BTF)
    return dense(cfg.width, name="mlp_down")(h_BTF)


def decoder_stack(
    block: nn.Module, x_BTD: jax.Array, cache: Cache | None, *shared: Any, length: int, compute: Compute
) -> tuple[jax.Array, Cache | None]:
    """`stack` for the blocks of a decoder: the last x_BTD, and the cache, if there is one, with what they have read."""
    layers = (None, None) if cache is None else (cache.kv, cache.cross)
    x_BTD, new = stack(block, x_BTD, layers, *shared, length=length, compute=compute)
    if cache is None:
        return x_BTD, None
    return x_BTD, cache.replace(kv=new[0], cross=new[1] if cache.cross is None else cache.cross)


class LogitsBias(nn.Module):
    """Adds to the logits of each token a number that published models have, and that is not trained."""

    vocab_size: int
    compute: Compute

    @nn.compact
    def __call__(self, logits_BTV: jax.Array) -> jax.Array:
        shape = (padded_vocab(self.vocab_size),)
        bias_V = self.param("bias", nn.initializers.zeros_init(), shape, self.compute.param_dtype)
        return logits_BTV + jax.lax.stop_gradient(bias_V).astype(logits_BTV.dtype)


# ---- how these models are published, by BART and all its kin ---------------------------------------------------------

CONFIG = {
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
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "decoder_start_id": "decoder_start_token_id",
    "forced_eos_id": "forced_eos_token_id",
}
"""Rows of `HF_CONFIG` that all of them have."""
DEFAULTS = {
    "activation_function": "gelu",
    "scale_embedding": False,
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
}


def fixed(norm_first: bool, learned_positions: bool) -> dict[str, Any]:
    """`HF_FIXED` of a family."""
    return {
        "is_decoder": False,
        "tie_word_embeddings": True,
        "encoder_layerdrop": 0.0,
        "decoder_layerdrop": 0.0,
        # What one class had for all of them, when these were first published:
        "normalize_before": norm_first,
        "normalize_embedding": learned_positions,
        "add_final_layer_norm": norm_first,
        "static_position_embeddings": not learned_positions,
    }


def _attention_rows(theirs: str, ours: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{theirs}.q_proj.weight",                    f"{ours}/query/kernel",          "(H K) D -> D H K"),
        (f"{theirs}.q_proj.bias",                      f"{ours}/query/bias",            "(H K) -> H K"),
        (f"{theirs}.k_proj.weight",                    f"{ours}/key/kernel",            "(H K) D -> D H K"),
        (f"{theirs}.k_proj.bias",                      f"{ours}/key/bias",              "(H K) -> H K"),
        (f"{theirs}.v_proj.weight",                    f"{ours}/value/kernel",          "(H K) D -> D H K"),
        (f"{theirs}.v_proj.bias",                      f"{ours}/value/bias",            "(H K) -> H K"),
        (f"{theirs}.out_proj.weight",                  f"{ours}/out/kernel",            "D (H K) -> H K D"),
        (f"{theirs}.out_proj.bias",                    f"{ours}/out/bias",              "D -> D"),
        (f"{theirs}_layer_norm.weight",                f"{ours}_norm/scale",            "D -> D"),
        (f"{theirs}_layer_norm.bias",                  f"{ours}_norm/bias",             "D -> D"),
    )  # fmt: skip


def _block_rows(side: str) -> tuple[tuple[str, str, str], ...]:
    return (
        *_attention_rows(f"{side}.layers.*.self_attn", f"{side}_blocks/attention"),
        (f"{side}.layers.*.fc1.weight",                f"{side}_blocks/mlp_up/kernel",  "F D -> D F"),
        (f"{side}.layers.*.fc1.bias",                  f"{side}_blocks/mlp_up/bias",    "F -> F"),
        (f"{side}.layers.*.fc2.weight",                f"{side}_blocks/mlp_down/kernel", "D F -> F D"),
        (f"{side}.layers.*.fc2.bias",                  f"{side}_blocks/mlp_down/bias",  "D -> D"),
        (f"{side}.layers.*.final_layer_norm.weight",   f"{side}_blocks/mlp_norm/scale", "D -> D"),
        (f"{side}.layers.*.final_layer_norm.bias",     f"{side}_blocks/mlp_norm/bias",  "D -> D"),
    )  # fmt: skip


BLOCK_WEIGHTS = (
    *_block_rows("encoder"),
    *_block_rows("decoder"),
    *_attention_rows("decoder.layers.*.encoder_attn", "decoder_blocks/cross_attention"),
)
"""Rows of `HF_WEIGHTS` for `encoder_blocks` and `decoder_blocks`."""
HEAD_WEIGHTS = {
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
TIED = {
    "encoder.embed_tokens.weight": "shared.weight",
    "decoder.embed_tokens.weight": "shared.weight",
    "lm_head.weight": "shared.weight",
}
ZERO = ("final_logits_bias",)  # and so it is where a file has none


# ---- tasks that judge a source: the decoder reads it once more ------------------------------------------------------

JUDGES = ("sequence-classification", "question-answering")


def judge(cfg: Any, task: str) -> dict[str, Any]:
    """How the head of a task judges: of sequences with a hidden layer."""
    dropout = {"dropout": cfg.head_dropout}
    return {
        "sequence-classification": {"activation": "tanh", "hidden_dropout": cfg.head_dropout, **dropout},
        "token-classification": dropout,
    }.get(task, {})


def shifted(source_BS: jax.Array, valid_BS: jax.Array | None, start: Any) -> jax.Array:
    """The source as a decoder reads it: each token a place later, and in the first real one's place `start`, a token,
    or one for each row, [B, 1]."""
    first_B1 = 0 if valid_BS is None else jnp.argmax(valid_BS, axis=1, keepdims=True)
    return jnp.where(jnp.arange(source_BS.shape[1]) == first_B1, start, jnp.roll(source_BS, 1, axis=1))


def judged(model: Any, output: Output, source_BS: jax.Array, valid_BS: jax.Array | None, train: bool) -> Output:
    """The output with what the head of the model's task says, if that judges: of every token where an answer is looked
    for; of a row, for classification, by the decoder's state at its last end of a text.

    Raises:
        ValueError: for classification, a target that is not as long as the source, or a row in which no text ends.
    """
    if model.task == "question-answering":
        return output.replace(logits=model.head(output.hidden_BTD, train))
    if model.task == "sequence-classification":
        check_like(output.hidden_BTD[..., 0], source_BS, "target_BT")
        ends_BS = text_ends(source_BS, valid_BS, model.config.eos_id)
        return output.replace(logits=model.head(pooling.last(output.hidden_BTD, ends_BS), train))
    return output


def text_ends(source_BS: jax.Array, valid_BS: jax.Array | None, eos_id: int | None) -> jax.Array:
    """bool[B, S]: where a text ends.

    Raises:
        ValueError: a row has no end. (Under jit the ids are not known, and the caller answers for it.)
    """
    ends_BS = source_BS == eos_id if valid_BS is None else (source_BS == eos_id) & valid_BS
    if (found := concrete(ends_BS)) is not None and not found.any(axis=1).all():
        row = found.any(axis=1).argmin()
        raise ValueError(f"row {row} of source_BS has no token {eos_id}, the end of a text, by which it is judged")
    return ends_BS
