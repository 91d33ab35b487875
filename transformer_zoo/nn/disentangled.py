"""Disentangled attention: content and relative position as separate vectors (DeBERTa, He et al. 2020, section 3.1);
distances in logarithmic buckets (its second version: section 5 of the paper, and the code released with it)."""

import dataclasses
import functools
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import kernels
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.compute import wide_einsum
from transformer_zoo.nn.embedding import Embedding, TokenEmbedding
from transformer_zoo.nn.encoder import Encoder, Inputs
from transformer_zoo.nn.heads import Head
from transformer_zoo.nn.masks import Mask
from transformer_zoo.nn.post_norm import PostNormBlock, PostNormConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisentangledConfig(PostNormConfig):
    """The fields of both versions of DeBERTa besides BERT's."""

    num_segments: int = 0  # no published model has segments
    embed_width: int | None = None  # None: as width
    norm_epsilon: float = 1e-7
    absolute_positions: bool = True  # added to the tokens; without them rows may be of any length
    relative_attention: bool = True
    position_terms: Literal["c2p|p2c", "c2p", "p2c", ""] = "c2p|p2c"  # of the attention scores
    max_distance: int | None = None  # distances are clipped to it. None: as max_length
    pooler_dropout: float = 0.0
    head_dropout: float | None = None  # None: as hidden_dropout
    pooler_activation: str = "gelu"


class DisentangledEncoder(Encoder):
    """An encoder with disentangled attention: its embeddings and its heads. The Config must have DeBERTa's fields.

    A family's `setup` calls `add_embeddings` and passes `head_table` to `add_head`.
    """

    @property
    def num_positions(self) -> int | None:
        """The number of absolute positions; None: there are none, and rows may be of any length."""
        return self.config.max_length if self.config.absolute_positions else None

    @property
    def head_table(self) -> dict[str, Head]:
        """A row is classified by its first token, with a hidden layer."""
        cfg = self.config
        rate = cfg.hidden_dropout if cfg.head_dropout is None else cfg.head_dropout
        classifier = Head(hidden=cfg.pooler_activation, hidden_dropout=cfg.pooler_dropout, dropout=rate)
        return {
            "base": Head(),
            "masked-lm": Head(vocabulary=cfg.activation),
            "sequence-classification": classifier,
            "token-classification": Head(dropout=cfg.hidden_dropout),
            "question-answering": Head(),
            "multiple-choice": classifier,
        }

    def add_embeddings(self, init: Any, norm: Any, num_distances: int) -> None:
        """Makes the layers of `embed`, and the table of `num_distances` distances on either side of a token."""
        cfg, compute = self.config, self.compute
        embed_width = cfg.embed_width or cfg.width
        embedding = functools.partial(Embedding, compute=compute, init=init)
        self.token_embed = TokenEmbedding(cfg.vocab_size, embed_width, compute, init)
        if cfg.absolute_positions:
            self.position_embed = embedding(cfg.max_length, embed_width)
        if cfg.num_segments:
            self.segment_embed = embedding(cfg.num_segments, embed_width)
        if embed_width != cfg.width:
            self.embed_project = compute.dense(cfg.width, use_bias=False, kernel_init=init)
        self.embed_norm, self.embed_drop = norm(), nn.Dropout(cfg.hidden_dropout)
        if cfg.relative_attention:
            self.relative_embed = embedding(2 * num_distances, cfg.width)

    def embed(self, inputs: Inputs, train: bool) -> jax.Array:
        cfg, x_BTD = self.config, self.token_embed(inputs.tokens_BT)
        if cfg.absolute_positions:
            x_BTD += self.position_embed(inputs.positions_BT)
        if cfg.num_segments:
            x_BTD += self.segment_embed(inputs.segments_BT)
        if cfg.embed_width not in (None, cfg.width):
            x_BTD = self.embed_project(x_BTD)
        return self.embed_drop(zero_padding(self.embed_norm(x_BTD), inputs.mask), deterministic=not train)

    def distance_table(self) -> jax.Array | None:
        """The embeddings of the distances, [R, D]; None: the model has no relative attention."""
        return self.relative_embed.embedding.astype(self.compute.dtype) if self.config.relative_attention else None


class DisentangledAttention(Attention):
    """Multi-head attention with relative positions: a table of distance embeddings [R, D], shared by all layers.

    The score of a query t and a key s is, divided by sqrt(K * (1 + the number of position terms)),

        q_t . k_s  +  q_t . position_key(d)  +  k_s . position_query(d)

    where d is the table's row for the distance t - s. Fused kernels do not support these scores.
    """

    terms: str = "c2p|p2c"
    """The position terms: content to position (c2p), position to content (p2c), both, or "" for none."""
    max_distance: int | None = None
    """Distances beyond a quarter of the table share rows, in buckets that widen logarithmically up to this distance.
    None: every distance has its own row, up to half of the table."""
    share_att_key: bool = False
    """The table is projected by the kernels of the content; otherwise by kernels of its own."""
    table_dropout: float = 0.0
    talking_heads: bool = False
    """Heads are mixed linearly before and after the softmax (Shazeer et al. 2020)."""

    def setup(self) -> None:
        super().setup()
        project = functools.partial(self.compute.dense_general, (self.num_heads, self.head_dim), kernel_init=self.init)
        if "c2p" in self.terms and not self.share_att_key:
            self.position_key = project(use_bias=self.use_bias and self.key_bias)
        if "p2c" in self.terms and not self.share_att_key:
            self.position_query = project(use_bias=self.use_bias)
        self.table_drop = nn.Dropout(self.table_dropout)

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        kv: tuple[jax.Array, jax.Array],
        table_RD: jax.Array | None,
        *,
        mask: Mask,
        train: bool = False,
    ) -> jax.Array:
        """Self-attention, whose keys and values are of the same tokens; without a table, by content only.

        Raises:
            ValueError: a fused kernel is asked for.
        """
        if self.compute.attention not in ("auto", "xla"):
            raise ValueError(
                f"attention {self.compute.attention!r} does not support relative positions: choose 'auto' or 'xla'"
            )
        # A query at padding sees no key, so that its weights are equal, as in the code released with the paper.
        mask = mask.replace(documents_BT=mask.valid_BS, documents_BS=mask.valid_BS)
        q_BTHK, (k_BSHK, v_BSHK) = self.query(x_BTD), kv
        scores_BHTS = self.product("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)
        if table_RD is not None:
            scores_BHTS += self.position_scores(q_BTHK, k_BSHK, table_RD, train)
        scores_BHTS *= (self.head_dim * (1 + ("c2p" in self.terms) + ("p2c" in self.terms))) ** -0.5
        mix = functools.partial(self.compute.dense, self.num_heads, use_bias=False, kernel_init=self.init)
        if self.talking_heads:
            scores_BHTS = _mix_heads(mix(name="mix_scores"), scores_BHTS)
        seen = mask.dense(*scores_BHTS.shape[2:])
        if seen is not None:
            scores_BHTS = jnp.where(seen, scores_BHTS, jnp.finfo(scores_BHTS.dtype).min)
        weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
        sown = {"queries_BTHK": q_BTHK, "keys_BSGK": k_BSHK, "values_BSGK": v_BSHK, "weights_BHTS": weights_BHTS}
        for name, x in sown.items():
            self.sow("intermediates", name, x)
        weights_BHTS = nn.Dropout(self.dropout, deterministic=not train)(weights_BHTS)
        if self.talking_heads:
            weights_BHTS = _mix_heads(mix(name="mix_weights"), weights_BHTS)
        out = self.compute.dense_general(
            x_BTD.shape[-1], axis=(-2, -1), use_bias=self.use_bias, kernel_init=self.out_init, name="out"
        )
        return out(kernels.mix(weights_BHTS, v_BSHK))

    def position_scores(
        self, q_BTHK: jax.Array, k_BSHK: jax.Array, table_RD: jax.Array, train: bool
    ) -> jax.Array | float:
        """The position terms of the scores, [B, H, T, S].

        The table's rows of the 2T distances are gathered once, and every token is multiplied with all of them. The
        scores of a token and its keys are then a diagonal of the product, so that nothing of size [T, S] is gathered.
        """
        T = q_BTHK.shape[1]
        distances = np.minimum(np.arange(2 * T) - (T - 1), T - 1)
        ahead, behind = (table_rows(sign * distances, len(table_RD), self.max_distance) for sign in (1, -1))
        first, last = ahead.min(), ahead.max()
        used_RD = self.table_drop(table_RD[first : last + 1], deterministic=not train)
        scores_BHTS = 0.0
        if "c2p" in self.terms:
            key_RHK = (self.key if self.share_att_key else self.position_key)(used_RD)
            scores_BHTS += diagonals(self.product("BTHK,WHK->BHTW", q_BTHK, key_RHK[behind - first]))
        if "p2c" in self.terms:
            query_RHK = (self.query if self.share_att_key else self.position_query)(used_RD)
            by_key = diagonals(self.product("BSHK,WHK->BHSW", k_BSHK, query_RHK[ahead - first]))
            scores_BHTS += jnp.swapaxes(by_key, 2, 3)
        return scores_BHTS

    @property
    def product(self) -> Any:
        return functools.partial(wide_einsum, dtype=self.compute.accumulation_dtype)


class DisentangledBlock(PostNormBlock):
    """BERT's block, with disentangled attention."""

    def attend(self, x_BTD: jax.Array, mask: Mask, relative: Any, train: bool) -> jax.Array:
        """Self-attention [B, T, D], with the embeddings of the distances as `relative`, [R, D], or None."""
        cfg, init = self.config, self.init
        attention = DisentangledAttention(
            cfg.num_heads, cfg.width // cfg.num_heads, self.compute, dropout=cfg.attention_dropout,
            terms=cfg.position_terms, table_dropout=cfg.hidden_dropout, init=init, out_init=init, name="attention",
            **self.attention_settings,
        )  # fmt: skip
        return attention(x_BTD, attention.keys_values(x_BTD), relative, mask=mask, train=train)

    @property
    def attention_settings(self) -> dict[str, Any]:
        """The fields of `DisentangledAttention` in which the versions differ."""
        raise NotImplementedError


def _mix_heads(dense: nn.Module, x_BHTS: jax.Array) -> jax.Array:
    return jnp.moveaxis(dense(jnp.moveaxis(x_BHTS, 1, -1)), -1, 1).astype(x_BHTS.dtype)


def zero_padding(x_BTD: jax.Array, mask: Mask) -> jax.Array:
    """`x_BTD` with zeros at padding."""
    return x_BTD if mask.valid_BS is None else jnp.where(mask.valid_BS[..., None], x_BTD, 0)


def table_rows(distances: np.ndarray, size: int, max_distance: int | None) -> np.ndarray:
    """The rows of a table [size, D] for distances from a key to a query. The middle row is distance 0; distances
    beyond the table are clipped to its ends."""
    if max_distance is not None:
        distances = buckets(distances, size // 2, max_distance)
    return np.clip(distances + size // 2, 0, size - 1)


def buckets(distances: np.ndarray, count: int, max_distance: int) -> np.ndarray:
    """Distances up to `count / 2` unchanged; larger ones on a logarithmic scale, on which `max_distance - 1` becomes
    `count - 1`. In float32, as in the code released with the paper.
    """
    near, apart = count // 2, np.abs(distances)
    ratio = np.log(np.maximum(apart, near).astype(np.float32) / np.float32(near))
    last = np.log(np.float32((max_distance - 1) / near))
    far = np.ceil(ratio / last * np.float32(near - 1)).astype(int) + near
    return np.where(apart <= near, distances, np.sign(distances) * far)


def diagonals(x_BHTW: jax.Array) -> jax.Array:
    """[B, H, T, 2T] to [B, H, T, S]: of row t, the T columns from T - 1 - t on.

    Rows of the flat array, read one element shorter than they are, begin one column earlier with each row.
    """
    B, H, T, W = x_BHTW.shape
    flat = x_BHTW.reshape(B, H, T * W)[..., T - 1 : T * W - 1]
    return flat.reshape(B, H, T, W - 1)[..., :T]
