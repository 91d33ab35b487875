"""How the next token is chosen: frozen, hashable values with one method, so that a compiled loop is made once for each.

Another way of choosing is another such class: `choose(keys_B, logits_BV) -> tokens_B`, pure, a row at a time. Among
what is chosen, they say by the `Rules` that they inherit.
"""

import dataclasses

import jax
import jax.numpy as jnp

from transformer_zoo.generation.rules import Rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Greedy(Rules):
    """The most probable token that the `Rules` leave; of equals, the one with the lowest id."""

    def choose(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """int32[B]; the keys are not used."""
        # The first of the largest: on a CPU four times as fast as the argmax of floats.
        return jnp.argmax(logits_BV == logits_BV.max(axis=-1, keepdims=True), axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Rules):
    """A random token, after the `Rules`, temperature, top-k and top-p, in this order.

    Attributes:
        temperature: the logits are divided by it; near 0 is nearly greedy.
        top_k: only the k most probable tokens (Fan et al. 2018, section 5.4), with those equal to the k-th.
        top_p: only the nucleus (Holtzman et al. 2020, section 3.1): the tokens before which, from the most probable
            one down, less than p of the probability lies. Of equals, all are in or all are out.

    Raises:
        ValueError: a setting out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be positive: for the limit of 0 there is Greedy()")
        if self.top_k is not None and (self.top_k != int(self.top_k) or self.top_k < 1):
            raise ValueError(f"top_k={self.top_k} must be a number of tokens, at least 1: leave it out to keep all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]: leave it out to keep all")

    def choose(self, keys_B: jax.Array, logits_BV: jax.Array) -> jax.Array:
        """int32[B], each row by its own key."""
        return jax.vmap(jax.random.categorical)(keys_B, self.filter(logits_BV)).astype(jnp.int32)

    def filter(self, logits_BV: jax.Array) -> jax.Array:
        """The logits that are sampled from: those of tokens that cannot be chosen are -inf."""
        # Relative to the largest, so that no temperature overflows.
        logits_BV = (logits_BV - logits_BV.max(axis=-1, keepdims=True)) / self.temperature
        if self.top_k is not None:
            logits_BV = _heaviest(logits_BV, jnp.ones_like(logits_BV), self.top_k)
        if self.top_p is not None:
            logits_BV = _heaviest(logits_BV, jax.nn.softmax(logits_BV, axis=-1), self.top_p)
        return logits_BV


def _heaviest(logits_BV: jax.Array, weight_BV: jax.Array, target: float) -> jax.Array:
    """The largest logits, as few as together weigh the target, and -inf for the rest; equal ones are not parted.

    Their least is found by bisection over the bits of a float, which takes a tenth of the time of a sort.
    """
    bits = jnp.finfo(logits_BV.dtype).bits
    integer = jnp.dtype(f"int{bits}")
    order_BV = jax.lax.bitcast_convert_type(logits_BV, integer)
    order_BV = jnp.where(order_BV < 0, order_BV ^ jnp.iinfo(integer).max, order_BV)  # ordered as the floats are

    def raise_by_bit(i, least_B1):
        higher_B1 = least_B1 + (jnp.ones((), integer) << (bits - 2 - i))
        weight_B1 = jnp.sum(weight_BV, axis=-1, keepdims=True, where=order_BV >= higher_B1)
        return jnp.where(weight_B1 >= target, higher_B1, least_B1)

    # Logits are at most 0 here, so the sign bit of the order is set.
    least_B1 = jnp.full_like(order_BV[:, :1], jnp.iinfo(integer).min)
    least_B1 = jax.lax.fori_loop(0, bits - 1, raise_by_bit, least_B1)
    return jnp.where(order_BV >= least_B1, logits_BV, -jnp.inf)
