"""Which query may see which key: a description that a fused kernel can use, and `dense` where one needs the matrix."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Mask:
    """True where every condition given holds.

    Attributes:
        causal: a query sees its own slot and the slots before it.
        offset: the slot of the first query among the keys (how much a cache already holds).
        valid_BS: keys that are real; padding is seen by nobody.
        documents_BT, documents_BS: the document of each query and key; attention never crosses documents.
        window: how many keys there are to see around a query, itself included: with a causal mask the last `window`,
            otherwise `window // 2` on each side.
        local: whether the window holds; it may differ by layer.
    """

    causal: bool = struct.field(pytree_node=False, default=False)
    offset: jax.Array | int = 0
    valid_BS: jax.Array | None = None
    documents_BT: jax.Array | None = None
    documents_BS: jax.Array | None = None
    window: int | None = struct.field(pytree_node=False, default=None)
    local: jax.Array | bool = True

    @property
    def reach(self) -> int:
        """How many slots away the farthest key is that a window shows."""
        return self.window - 1 if self.causal else self.window // 2

    def dense(self, T: int, S: int) -> jax.Array | None:
        """bool[B or 1, 1, T, S], or None where everything is seen."""
        conditions = []
        if self.causal:
            conditions.append((jnp.arange(S) <= self.offset + jnp.arange(T)[:, None])[None, None])
        if self.valid_BS is not None:
            conditions.append(self.valid_BS[:, None, None, :])
        if self.documents_BT is not None:
            conditions.append((self.documents_BT[:, :, None] == self.documents_BS[:, None, :])[:, None])
        if self.window is not None:
            distance_TS = jnp.abs(self.offset + jnp.arange(T)[:, None] - jnp.arange(S))
            conditions.append(((distance_TS <= self.reach) | jnp.logical_not(self.local))[None, None])
        return _all(conditions)


def _all(conditions: list[jax.Array]) -> jax.Array | None:
    if not conditions:
        return None
    result = conditions[0]
    for condition in conditions[1:]:
        result = result & condition
    return result
