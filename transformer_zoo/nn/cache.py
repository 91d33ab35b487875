"""The cache of keys and values: a value that goes in and comes out, never a hidden collection."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformer_zoo.nn import checks
from transformer_zoo.nn.stack import ByKind
from transformer_zoo.sharding import platform

SPARE = 32
"""Slots of a ring besides its window: as many tokens can be read at once without a copy of the ring."""


@struct.dataclass
class State:
    """What a layer without keys and values keeps of all tokens together (`nn/delta.py`). No token can be taken out.

    Attributes:
        inputs: (q_LBGJK, k_LBGJK, v_LBHJE), the last inputs of the convolution.
        matrices: LBHKE, one for each head.
    """

    inputs: Any
    matrices: Any


@struct.dataclass
class Windowed:
    """What layers with a window keep: the keys and values of the tokens in a `Ring`.

    Attributes:
        kv: (k_LBGRK, v_LBGRK).
    """

    kv: Any


@struct.dataclass
class Cache:
    """Keys and values of the tokens seen so far, in slots that all rows fill at the same pace, or each at its own.

    Attributes:
        kv: (k_LBGSK, v_LBGSK), stacked along the layers as the parameters are. A head's slots lie side by side: so the
            products with a token's queries and weights read them as they are, and a CPU need not copy them first. Of
            latent attention, one array that stands for both. Where blocks are scanned in groups (`stack.Group`) or in
            several stacks, a tuple of these, with a `State` for a layer without them. `Windowed` of layers with a ring;
            where only some have one, a `ByKind` of both. Where slots have fewer rows than there are, consecutive rows
            share those of one, in which each writes slots of its own.
        valid_BS: which slots hold a real token; padding takes a slot, and nobody sees it.
        length: int32[], the slots written so far; int32[B] where they differ by row.
        ring: of the layers with a window, which positions their slots hold, fewer than those of `valid_BS`. None: all
            layers have a slot for each token.
        cross: of an encoder-decoder, (k_LBGSK, v_LBGSK) of the encoded source, computed once; None before that.
        cross_valid_BS: which positions of the source are real.
    """

    kv: Any
    valid_BS: jax.Array
    length: jax.Array
    cross: Any = None
    cross_valid_BS: jax.Array | None = None
    ring: "Ring | None" = None

    def admit(self, valid_BT: jax.Array) -> "Cache":
        """The cache with slots for T more tokens; their keys and values follow, layer by layer, with `append`.

        Raises:
            ValueError: the rows are not those of the cache, or the slots do not suffice. (Under jit the length is not
                known, and the caller answers for it.)
        """
        (rows, slots), (B, T) = self.valid_BS.shape, valid_BT.shape
        if rows != B:
            raise ValueError(f"the cache has {rows} rows and the tokens {B}: make a cache for as many rows")
        if (held := checks.concrete(self.length)) is not None and held.max() + T > slots:
            raise ValueError(
                f"the cache has {slots} slots and holds {held.max()} tokens, so {T} more do not fit: make it longer"
            )
        return self.replace(valid_BS=_write(self.valid_BS, valid_BT, self.length, axis=-1), length=self.length + T)

    def rewind(self, length: jax.Array | int) -> "Cache":
        """The cache without the tokens from slot `length` on, int32[] or, for each row, int32[B]. Of a ring, no more
        than SPARE may have been written at once.

        Raises:
            ValueError: a layer keeps a `State`.
        """
        if any(isinstance(x, State) for x in jax.tree.leaves(self.kv, is_leaf=lambda x: isinstance(x, State))):
            raise ValueError(
                "layers with the gated delta rule keep a state of all tokens together, from which none can be taken "
                "back: decode without speculation (draft=None)"
            )
        valid_BS = self.valid_BS & (jnp.arange(self.valid_BS.shape[1]) < jnp.reshape(length, (-1, 1)))
        ring = None if self.ring is None else self.ring.rewind(valid_BS.sum(axis=1))
        return self.replace(valid_BS=valid_BS, length=length, ring=ring)

    def without_rows(self) -> "Cache":
        """The keys and values of a single row as a loop over `stack.Layers` carries them on a CPU, without the axis of
        the rows.

        XLA computes with arrays [G, S, K] where an axis has one element. A loop that carries [1, G, S, K] writes each
        token twice on a CPU, once in either shape, into copies of all slots.
        """
        if platform() != "cpu":
            return self
        return self.replace(kv=jax.tree.map(lambda x: x[0] if x.ndim == 4 and len(x) == 1 else x, self.kv))

    def with_rows(self) -> "Cache":
        """The cache that `without_rows` is of."""
        return self.replace(kv=jax.tree.map(lambda x: x[None] if x.ndim == 3 else x, self.kv))

    def widen(self, length: int) -> "Cache":
        """The cache with `length` slots a row, those that it has and free ones behind them. A ring has as many as its
        window needs."""
        more = length - self.valid_BS.shape[1]
        valid_BS = jnp.pad(self.valid_BS, ((0, 0), (0, more)))
        kv = over_slots(lambda x: jnp.pad(x, ((0, 0),) * (x.ndim - 2) + ((0, more), (0, 0))), self.kv)
        return self.replace(kv=kv, valid_BS=valid_BS)


@struct.dataclass
class Ring:
    """Slots of a window and SPARE more: the token at a position takes the slot of this number, modulo the slots.

    Attributes:
        position_BR: int32[B, R], the position of the token in each slot; -1 where there is none.
        window: the last keys that a query attends to, its own included.
    """

    position_BR: jax.Array
    window: int = struct.field(pytree_node=False)

    def admit(self, position_BT: jax.Array, valid_BT: jax.Array) -> tuple["Ring", "Slots", jax.Array]:
        """The ring with T more tokens; their slots; and int32[B, S], the positions of the keys that they attend to, -1
        for none: those in the ring or, of more tokens than spare slots, those that it held and the tokens' own."""
        R, T = self.position_BR.shape[1], position_BT.shape[1]
        last_B1 = jnp.max(jnp.where(valid_BT, position_BT, -1), axis=1, keepdims=True)
        kept_BT = valid_BT & (position_BT > last_B1 - R)
        slot_BT = jnp.where(kept_BT, position_BT % R, R)  # R is none, and dropped
        position_BR = _scatter(self.position_BR, position_BT, slot_BT)
        beside = T + self.window - 1 > R
        own_BT = jnp.where(valid_BT, position_BT, -1)
        seen_BS = jnp.concatenate([self.position_BR, own_BT], axis=1) if beside else position_BR
        return self.replace(position_BR=position_BR), Slots(slot_BT=slot_BT, beside=beside), seen_BS

    def rewind(self, count_B: jax.Array) -> "Ring":
        """The ring without the tokens from these positions on."""
        return self.replace(position_BR=jnp.where(self.position_BR < count_B[:, None], self.position_BR, -1))


@struct.dataclass
class Slots:
    """Where tokens are written in a ring.

    Attributes:
        slot_BT: int32[B, T]; a slot that the ring lacks is written nowhere.
        beside: whether the tokens attend to what the ring held and to their own keys, and not to the ring after them.
    """

    slot_BT: jax.Array
    beside: bool = struct.field(pytree_node=False)


def empty(
    num_layers: int, batch: int, length: int, num_heads: int, head_dim: int, dtype: Any, *,
    window: int | None = None, local_layers: np.ndarray | None = None,
) -> Cache:  # fmt: skip
    """A cache with `length` free slots in each of `batch` rows.

    Args:
        window: of the local layers: these then have a ring, if that has fewer slots. None: there are none.
        local_layers: bool[L], which layers have the window. None: all.
    """
    cache = Cache(kv=None, valid_BS=jnp.zeros((batch, length), bool), length=jnp.zeros((), jnp.int32))

    def zeros(layers: int, slots: int) -> tuple[jax.Array, jax.Array]:
        return (jnp.zeros((layers, batch, num_heads, slots, head_dim), dtype),) * 2

    kinds = (1,) * num_layers if local_layers is None else tuple(map(int, local_layers))
    local = sum(kinds)
    if not local or window is None or window + SPARE >= length:
        return cache.replace(kv=zeros(num_layers, length))
    slots = window + SPARE
    kv = Windowed(zeros(local, slots))
    if local < num_layers:
        kv = ByKind((zeros(num_layers - local, length), kv), kinds)
    return cache.replace(kv=kv, ring=Ring(position_BR=jnp.full((batch, slots), -1, jnp.int32), window=window))


def of_layer(kv: Any, mask: Any, start: Any) -> tuple[Any, Any]:
    """The mask of a layer with this part of a cache, and where it is written, from what `decoder_inputs` returns."""
    if not isinstance(start, tuple):
        return mask, start
    windowed = isinstance(kv, Windowed)
    return mask[windowed], start[windowed]


def update(layer: Any, new: Any, start: Any) -> tuple[Any, Any]:
    """What tokens attend to, (k_BGSK, v_BGSK), and what is kept of one layer, given the `new` (k_BSGK, v_BSGK) of these
    tokens; `start` is where the layer is written."""
    if not isinstance(layer, Windowed):
        kept = append(layer, new, start)
        return kept, kept
    new = jax.tree.map(lambda old, part: part.astype(old.dtype), layer.kv, new)
    kept = jax.tree.map(lambda old, part: _scatter(old, part, start.slot_BT), layer.kv, new)
    if not start.beside:
        return kept, Windowed(kept)
    join = lambda old, part: jnp.concatenate([old, part], axis=-2)
    return jax.tree.map(join, layer.kv, to_cache_layout(new)), Windowed(kept)


def _scatter(old: jax.Array, new: jax.Array, slot_BT: jax.Array) -> jax.Array:
    """[B, R] with [B, T], or [B, G, R, K] with [B, T, G, K], written into the slots of each row."""
    rows_B1 = jnp.arange(len(old))[:, None]
    at = old.at[rows_B1, slot_BT] if old.ndim == 2 else old.at[rows_B1, :, slot_BT]
    return at.set(new, mode="drop")


def over_slots(
    function: Callable[[jax.Array], jax.Array], kv: Any, of_others: Callable[[jax.Array], jax.Array] = lambda x: x
) -> Any:
    """A cache's `kv` with a function applied to each array with a slot for each token, [..., S, K], and another to
    those of `State` and `Windowed`."""
    is_other = lambda x: isinstance(x, State | Windowed)
    of_any = lambda x: jax.tree.map(of_others, x) if is_other(x) else function(x)
    return jax.tree.map(of_any, kv, is_leaf=is_other)


def append(layer: Any, new: Any, start: jax.Array | int) -> Any:
    """What is kept of one layer, with `new`, (k_BSGK, v_BSGK), written from slot `start` on; of `new` alone where there
    is no cache."""
    new = to_cache_layout(new)
    if layer is None:
        return new
    if (rows := len(jax.tree.leaves(layer)[0])) != len(jax.tree.leaves(new)[0]):
        # The single tokens of the rows that share slots, side by side.
        side_by_side = lambda x_MG1K: jnp.swapaxes(x_MG1K[:, :, 0].reshape(rows, -1, *x_MG1K.shape[1::2]), 1, 2)
        new = jax.tree.map(side_by_side, new)
        start = start[0]
    return jax.tree.map(lambda old, part: _write(old, part.astype(old.dtype), start, axis=-2), layer, new)


def _write(old: jax.Array, new: jax.Array, start: jax.Array | int, axis: int) -> jax.Array:
    """Writes along an axis from `start` on, which may differ by row."""
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=axis)
    if jnp.ndim(start):
        return jax.vmap(write)(old, new, start)
    if len(old) == 1 and platform() == "cpu":  # see `without_rows`
        return write(old[0], new[0], start)[None]
    return write(old, new, start)


def to_cache_layout(kv: Any) -> Any:
    """One layer's (k_BSGK, v_BSGK) as a cache has them."""
    return jax.tree.map(lambda x_BSGK: jnp.swapaxes(x_BSGK, 1, 2), kv)


def from_cache_layout(layer: Any) -> Any:
    """One layer of a cache as attention takes it, (k_BSGK, v_BSGK)."""
    return jax.tree.map(lambda x_BGSK: jnp.swapaxes(x_BGSK, 1, 2), layer)
