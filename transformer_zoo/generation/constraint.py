"""Answers that match a pattern: which tokens are allowed behind which, as tables that a program reads."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from transformer_zoo.generation import pattern
from transformer_zoo.generation.json_schema import Schema
from transformer_zoo.json_files import excerpt

LARGEST = 1 << 28
"""Elements of the largest table."""
FAR = 1 << 30
"""The distance of a state that leads to no end."""
NEUTRAL = {
    "min_new_tokens": 0, "min_length": 0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0,
    "begin_suppressed": (), "stop_strings": (), "stop": [],
}  # fmt: skip
"""Rules by which an answer may have no way to its end, or an end before it is complete; and the values by which they
change nothing."""


@struct.dataclass
class Constraint:
    """An automaton of N states over tokens, for B rows.

    Attributes:
        after_NV: the state behind each state and token; -1: the token is not allowed.
        distance_N: the smallest number of tokens up to the end of an answer; 0: it may end here.
        start_B: the first state of each row.
    """

    after_NV: jax.Array
    distance_N: jax.Array
    start_B: jax.Array

    def apply(
        self,
        n: jax.Array | int,
        logits_MV: jax.Array,
        new_MR: jax.Array,
        *,
        otherwise_MV: jax.Array,
        max_new: jax.Array | int,
        stop_ids: jax.Array,
    ) -> jax.Array:
        """The logits of new token n, -inf for those with which no answer of max_new tokens can match.

        Args:
            n: the number of new tokens, or int[M].
            otherwise_MV: the logits that count where all tokens that are allowed have -inf.
        """
        count_M = jnp.broadcast_to(n, len(new_MR))

        def advance(i: jax.Array, state_M: jax.Array) -> jax.Array:
            after_M = self.after_NV[state_M, jax.lax.dynamic_index_in_dim(new_MR, i, axis=1, keepdims=False)]
            return jnp.where((i < count_M) & (after_M >= 0), after_M, state_M).astype(state_M.dtype)

        start_M = jnp.repeat(self.start_B, len(new_MR) // len(self.start_B))
        state_M = jax.lax.fori_loop(0, jnp.max(count_M), advance, start_M)
        after_MV = self.after_NV[state_M]
        allowed_MV = (after_MV >= 0) & (self.distance_N[after_MV] < (max_new - count_M)[:, None])
        ends_M1 = (self.distance_N[state_M] == 0)[:, None]
        allowed_MV = allowed_MV.at[:, stop_ids].set(jnp.broadcast_to(ends_M1, (len(new_MR), len(stop_ids))))
        found_MV = jnp.where(allowed_MV, logits_MV, -jnp.inf)
        none_M1 = jnp.isneginf(found_MV).all(axis=1, keepdims=True)
        return jnp.where(none_M1, jnp.where(allowed_MV, otherwise_MV, -jnp.inf), found_MV)


def check(rules: Mapping[str, Any], **constrained: Any) -> tuple[str, Any]:
    """The one of the arguments of `generate` that constrains answers, and what `pattern.automaton` takes for it; "" and
    None, if all of them are None.

    Args:
        rules: settings of `LogitsRules` and `stop`, by name.

    Raises:
        ValueError: several of them; no choices, or an empty one; rules that may contradict it; as `pattern.automaton`.
    """
    found = {name: value for name, value in constrained.items() if value is not None}
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)}: give one of them")
    if not found:
        return "", None
    ((name, value),) = found.items()
    if name == "choices" and not (value and all(value)):
        raise ValueError(f"choices={value!r}: give texts, none of them empty")
    for rule, neutral in NEUTRAL.items():
        if (given := rules.get(rule)) not in (neutral, None):
            raise ValueError(
                f"{rule}={excerpt(repr(given))} and {name} may contradict one another: pass {rule}={neutral!r}, or "
                f"leave out {name}"
            )
    wanted = {"choices": tuple, "pattern": str, "schema": Schema.of}[name](value)
    pattern.automaton(wanted)
    return name, wanted


@functools.lru_cache(maxsize=8)
def tables(wanted: Any, tokenizer: Any, vocab_size: int, excluded: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`after_NV` and `distance_N` of what `pattern.automaton` takes: int32[N, V] and int32[N].

    State 0 is the beginning of an answer behind other text, and state 1 that at the beginning of all text, where some
    tokenizers leave out a space. The number of states is rounded up, so that patterns share programs.

    Args:
        excluded: tokens that no answer has, such as those that end it.

    Raises:
        ValueError: as `pattern.automaton`; a pattern that needs too large a table, or that no tokens match.
    """
    step_N256, ends_N = pattern.automaton(wanted)
    N = len(step_N256)
    if N * vocab_size > LARGEST:
        raise ValueError(
            f"too much is allowed: {N:,} states and {vocab_size:,} tokens make a table of more than {LARGEST:,} "
            "elements: bound lengths and repetitions"
        )
    first, later = tokenizer.token_bytes
    after_NV = np.full((1 << N.bit_length(), vocab_size), -1, np.int32)
    bytes_VL, length_V = _as_array(later, vocab_size, excluded)
    for state in range(N):
        after_NV[state + (state > 0)] = _after(state, step_N256, bytes_VL, length_V)
    after_NV[1] = _after(0, step_N256, *_as_array(first, vocab_size, excluded))
    after_NV[after_NV > 0] += 1  # state 1 is none of the automaton's
    distance_N = np.full(len(after_NV), FAR, np.int32)
    distance_N[: N + 1] = np.where(np.insert(ends_N, 1, ends_N[0]), 0, FAR)
    behind = [np.flatnonzero(np.bincount(row + 1)[1:]) for row in after_NV]
    changed = True
    while changed:
        nearest = np.array([distance_N[states].min(initial=FAR) for states in behind])
        shorter_N = np.minimum(distance_N, np.minimum(nearest + 1, FAR))
        changed, distance_N = (shorter_N < distance_N).any(), shorter_N.astype(np.int32)
    # Tokens from which no end can be reached.
    after_NV[(after_NV >= 0) & (distance_N[after_NV] == FAR)] = -1
    return after_NV, distance_N


def _as_array(tokens: list[bytes], vocab_size: int, excluded: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """uint8[V, L], the bytes of each token, and int[V], how many there are: none of those that are excluded."""
    tokens = [*tokens[:vocab_size], *[b""] * (vocab_size - len(tokens))]
    for i in excluded:
        tokens[i] = b""
    length_V = np.array([*map(len, tokens)])
    longest = max(1, length_V.max())
    return np.frombuffer(b"".join(token.ljust(longest) for token in tokens), np.uint8).reshape(-1, longest), length_V


def _after(state: int, step_N256: np.ndarray, bytes_VL: np.ndarray, length_V: np.ndarray) -> np.ndarray:
    """int32[V]: the state behind each token."""
    after_V = np.where(length_V > 0, state, -1).astype(np.int32)
    left = np.flatnonzero(length_V)
    for place in range(bytes_VL.shape[1]):
        after_V[left] = step_N256[after_V[left], bytes_VL[left, place]]
        left = left[(after_V[left] >= 0) & (length_V[left] > place + 1)]
        if not left.size:
            break
    return after_V
