"""Which query attends to which key: a description that fused kernels can use, and `dense`, the matrix."""

import functools

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
    """A query attends to the keys that meet every condition given.

    Attributes:
        causal: a query attends to its own slot and the slots before it.
        offset: the slot of the first query among the keys (the number of slots already written in a cache); int[B]
            where it differs by row.
        valid_BS: keys that are real; no query attends to padding.
        documents_BT, documents_BS: the document of each query and key; attention never crosses documents.
        window: with a causal mask, the last `window` keys, the query's own included; otherwise `window // 2` keys on
            each side of it.
        local: whether the window applies; it may differ by layer.
        ahead_BTS: the position of each key minus the query's, by which the window goes. None: slots are positions.
        seen_BTS: any other condition, bool[B, T, S].
    """

    causal: bool = struct.field(pytree_node=False, default=False)
    offset: jax.Array | int = 0
    valid_BS: jax.Array | None = None
    documents_BT: jax.Array | None = None
    documents_BS: jax.Array | None = None
    window: int | None = struct.field(pytree_node=False, default=None)
    local: jax.Array | bool = True
    ahead_BTS: jax.Array | None = None
    seen_BTS: jax.Array | None = None

    @property
    def reach(self) -> int:
        """The distance of the farthest key in the window."""
        return self.window - 1 if self.causal else self.window // 2

    def queries(self, T: int) -> jax.Array | None:
        """bool[B, T]: which of the T queries are real, where they are among the keys. None: all."""
        if self.valid_BS is None:
            return None
        take = functools.partial(jax.lax.dynamic_slice_in_dim, slice_size=T, axis=-1)
        return jax.vmap(take)(self.valid_BS, self.offset) if jnp.ndim(self.offset) else take(self.valid_BS, self.offset)

    def dense(self, T: int, S: int) -> jax.Array | None:
        """bool[B or 1, 1, T or 1, S], or None if no key is masked."""
        conditions = []
        if self.causal:
            slot_BT1 = jnp.reshape(self.offset, (-1, 1, 1)) + jnp.arange(T)[:, None]
            conditions.append((jnp.arange(S) <= slot_BT1)[:, None])
        if self.valid_BS is not None:
            conditions.append(self.valid_BS[:, None, None, :])
        if self.documents_BT is not None:
            conditions.append((self.documents_BT[:, :, None] == self.documents_BS[:, None, :])[:, None])
        if self.window is not None:
            ahead_BTS = self.ahead_BTS
            if ahead_BTS is None:
                ahead_BTS = (jnp.arange(S) - self.offset - jnp.arange(T)[:, None])[None]
            conditions.append(((jnp.abs(ahead_BTS) <= self.reach) | jnp.logical_not(self.local))[:, None])
        if self.seen_BTS is not None:
            conditions.append(self.seen_BTS[:, None])
        return _all(conditions)


def _all(conditions: list[jax.Array]) -> jax.Array | None:
    if not conditions:
        return None
    result = conditions[0]
    for condition in conditions[1:]:
        result = result & condition
    return result
