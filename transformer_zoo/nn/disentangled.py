"""Disentangled attention: tokens attend to what others say, and to how far away they stand, apart (DeBERTa: He et al.
2020, section 3.1); distances in buckets (its second version, section 5 of the paper and the code released with it)."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.nn import kernels
from transformer_zoo.nn.attention import Attention
from transformer_zoo.nn.masks import Mask

# What there may be besides contents: content to position (c2p), position to content (p2c), or both.
TERMS = ("c2p|p2c", "c2p", "p2c", "")


class DisentangledAttention(Attention):
    """Multi-head attention that knows distances by a table of their embeddings, [R, D], which all layers share.

    The score of a query t and a key s is, over sqrt(K * (1 + the number of terms)),

        q_t . k_s  +  q_t . position_key(d)  +  k_s . position_query(d)

    with d the table's row for the distance t - s. It is computed in the open: no fused kernel knows such scores.
    """

    terms: str = TERMS[0]
    max_distance: int | None = None
    """Of the distances beyond a quarter of the table, the farther they are the more share a row, up to this one. None:
    every distance has its own, up to half of the table."""
    share: bool = False
    """The table is projected as the tokens are; otherwise by kernels of its own."""
    table_dropout: float = 0.0
    talk: bool = False
    """Heads mix what they score, and again how they weigh (Shazeer et al. 2020)."""

    def setup(self) -> None:
        super().setup()
        project = functools.partial(self.compute.dense_general, (self.num_heads, self.head_dim), kernel_init=self.init)
        if "c2p" in self.terms and not self.share:
            self.position_key = project(use_bias=self.use_bias and self.key_bias)
        if "p2c" in self.terms and not self.share:
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
        """Attends from x_BTD to keys and values of the same tokens; without a table, by contents only.

        Raises:
            ValueError: a fused kernel is asked for.
        """
        if self.compute.attention not in ("auto", "xla"):
            raise ValueError(f"attention {self.compute.attention!r} knows no positions: choose 'auto' or 'xla'")
        q_BTHK, (k_BSHK, v_BSHK) = self.query(x_BTD), kv
        scores_BHTS = self.product("BTHK,BSHK->BHTS", q_BTHK, k_BSHK)
        if table_RD is not None:
            scores_BHTS += self.by_distance(q_BTHK, k_BSHK, table_RD, train)
        scores_BHTS *= (self.head_dim * (1 + ("c2p" in self.terms) + ("p2c" in self.terms))) ** -0.5
        mix = functools.partial(self.compute.dense, self.num_heads, use_bias=False, kernel_init=self.init)
        if self.talk:
            scores_BHTS = _over_heads(mix(name="mix_scores"), scores_BHTS)
        seen = mask.dense(*scores_BHTS.shape[2:])
        if seen is not None:
            scores_BHTS = jnp.where(seen, scores_BHTS, jnp.finfo(scores_BHTS.dtype).min)
        weights_BHTS = jax.nn.softmax(scores_BHTS, axis=-1)
        sown = {"queries_BTHK": q_BTHK, "keys_BSGK": k_BSHK, "values_BSGK": v_BSHK, "weights_BHTS": weights_BHTS}
        for name, x in sown.items():
            self.sow("intermediates", name, x)
        weights_BHTS = nn.Dropout(self.dropout, deterministic=not train)(weights_BHTS)
        if self.talk:
            weights_BHTS = _over_heads(mix(name="mix_weights"), weights_BHTS)
        out = self.compute.dense_general(
            x_BTD.shape[-1], axis=(-2, -1), use_bias=self.use_bias, kernel_init=self.out_init, name="out"
        )
        return out(kernels.mix(weights_BHTS, v_BSHK))

    def by_distance(self, q_BTHK: jax.Array, k_BSHK: jax.Array, table_RD: jax.Array, train: bool) -> jax.Array | float:
        """The scores' terms of positions, [B, H, T, S].

        Of the small table, a row is gathered for each of the 2T distances, and every token is multiplied with all of
        them: what belongs to its neighbours is then a diagonal of that, for which nothing is gathered at all.
        """
        T = q_BTHK.shape[1]
        distances = np.minimum(np.arange(2 * T) - (T - 1), T - 1)
        ahead, behind = (table_rows(sign * distances, len(table_RD), self.max_distance) for sign in (1, -1))
        first, last = ahead.min(), ahead.max()
        used_RD = self.table_drop(table_RD[first : last + 1], deterministic=not train)
        scores_BHTS = 0.0
        if "c2p" in self.terms:
            key_RHK = (self.key if self.share else self.position_key)(used_RD)
            scores_BHTS += diagonals(self.product("BTHK,WHK->BHTW", q_BTHK, key_RHK[behind - first]))
        if "p2c" in self.terms:
            query_RHK = (self.query if self.share else self.position_query)(used_RD)
            by_key = diagonals(self.product("BSHK,WHK->BHSW", k_BSHK, query_RHK[ahead - first]))
            scores_BHTS += jnp.swapaxes(by_key, 2, 3)
        return scores_BHTS

    @property
    def product(self) -> Any:
        return functools.partial(jnp.einsum, preferred_element_type=self.compute.wide)


def _over_heads(dense: nn.Module, x_BHTS: jax.Array) -> jax.Array:
    return jnp.moveaxis(dense(jnp.moveaxis(x_BHTS, 1, -1)), -1, 1).astype(x_BHTS.dtype)


def real(x_BTD: jax.Array, mask: Mask) -> jax.Array:
    """With zeros in the place of padding."""
    return x_BTD if mask.valid_BS is None else jnp.where(mask.valid_BS[..., None], x_BTD, 0)


def terms_of(words: str | Sequence[str] | None) -> str:
    """One of `TERMS`, of a list or of words with bars between them, in any order.

    Raises:
        ValueError: a term that there is not.
    """
    found = words.lower().split("|") if isinstance(words, str) else words or ()
    terms = "|".join(sorted({word.strip() for word in found} - {""}))
    if terms not in TERMS:
        raise ValueError(f"known are {', '.join(map(repr, TERMS))}")
    return terms


def table_rows(distances: np.ndarray, size: int, max_distance: int | None) -> np.ndarray:
    """The rows of a table [size, D] for these distances of a query from a key, whose middle is for none."""
    if max_distance is not None:
        distances = buckets(distances, size // 2, max_distance)
    return np.clip(distances + size // 2, 0, size - 1)


def buckets(distances: np.ndarray, count: int, max_distance: int) -> np.ndarray:
    """Distances as they are up to half of `count`; beyond, their logarithms, so that `max_distance - 1` is the last.

    In float32, as the code released with the paper computes them.
    """
    near, apart = count // 2, np.abs(distances)
    ratio = np.log(np.maximum(apart, near).astype(np.float32) / np.float32(near))
    last = np.log(np.float32((max_distance - 1) / near))
    far = np.ceil(ratio / last * np.float32(near - 1)).astype(int) + near
    return np.where(apart <= near, distances, np.sign(distances) * far)


def diagonals(x_BHTW: jax.Array) -> jax.Array:
    """[B, H, T, S] of [B, H, T, 2T]: in row t, the T columns from T - 1 - t on. Read with a stride of one less, every
    row begins one column earlier."""
    B, H, T, W = x_BHTW.shape
    flat = x_BHTW.reshape(B, H, T * W)[..., T - 1 : T * W - 1]
    return flat.reshape(B, H, T, W - 1)[..., :T]
