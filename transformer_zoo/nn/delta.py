"""The gated delta rule (Yang et al. 2025, "Gated Delta Networks"), and the short causal convolution before it.

Each head has a state, a matrix that maps keys to values. A token first lets it decay; then it moves the value that the
state holds for the token's key towards the token's own value, by the share beta; then it reads the value for its query:

    S = exp(log_decay) S;    S = S + beta k (v - k S);    y = q S

Letters besides those of `attention.py`: H heads of values   G heads of queries and keys, each shared by H / G of those
of values   E size of a head of values   N chunks of R tokens   J taps of the convolution, or J - 1 tokens before it.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transformer_zoo.nn.activations import ACTIVATIONS
from transformer_zoo.nn.cache import State, from_cache_layout, to_cache_layout
from transformer_zoo.nn.compute import Compute

CHUNK = 64


def gated_delta_rule(
    q_BTGK: jax.Array,
    k_BTGK: jax.Array,
    v_BTHE: jax.Array,
    log_decay_BTH: jax.Array,
    beta_BTH: jax.Array,
    state_BHKE: jax.Array | None = None,
    *,
    valid_BT: jax.Array | None = None,
    starts_BT: jax.Array | None = None,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """What the tokens read from the state, [B, T, H, E], and the state after the last of them, [B, H, K, E].

    A single token takes one step; several are read in chunks. Both are computed in the dtype of `log_decay_BTH`, and
    the backward pass computes the chunks again: of a row's tokens only the arguments are kept.

    Args:
        q_BTGK, k_BTGK: queries and keys, as they are to be multiplied: normalised and scaled.
        log_decay_BTH: the logarithm of what the state is multiplied by; at most 0.
        beta_BTH: the share of the difference by which the state's value moves, 0 to 1.
        state_BHKE: the state before the first token. None: zero.
        valid_BT: which tokens are real. Padding leaves the state as it is, and what it reads has no meaning. None: all.
        starts_BT: at which tokens a document starts; the state before these is zero. None: at none.
        chunk: tokens in a chunk.
    """
    dtype, (B, T, H, E), (G, K) = log_decay_BTH.dtype, v_BTHE.shape, k_BTGK.shape[2:]
    q_BTHK, k_BTHK = (jnp.repeat(x, H // G, axis=2) for x in (q_BTGK, k_BTGK))
    if valid_BT is not None:
        log_decay_BTH = jnp.where(valid_BT[..., None], log_decay_BTH, 0)
        beta_BTH = jnp.where(valid_BT[..., None], beta_BTH, 0)
    arrays = [x.astype(dtype) for x in (q_BTHK, k_BTHK, v_BTHE, log_decay_BTH, beta_BTH)]
    state_BHKE = jnp.zeros((B, H, K, E), dtype) if state_BHKE is None else state_BHKE.astype(dtype)
    starts_BT = jnp.zeros((B, T), bool) if starts_BT is None else starts_BT.astype(bool)
    if T == 1:
        y_BHE, state_BHKE = recurrent(*(x[:, 0] for x in arrays), starts_BT[:, 0], state_BHKE)
        y_BTHE = y_BHE[:, None]
    else:
        y_BTHE, state_BHKE = jax.checkpoint(chunked, static_argnums=7)(*arrays, starts_BT, state_BHKE, min(chunk, T))
    return y_BTHE.astype(v_BTHE.dtype), state_BHKE


def recurrent(
    q_BHK: jax.Array,
    k_BHK: jax.Array,
    v_BHE: jax.Array,
    log_decay_BH: jax.Array,
    beta_BH: jax.Array,
    starts_B: jax.Array,
    state_BHKE: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """What one token reads, [B, H, E], and the state after it."""
    state_BHKE *= jnp.where(starts_B[:, None], 0, jnp.exp(log_decay_BH))[..., None, None]
    change_BHE = beta_BH[..., None] * (v_BHE - jnp.einsum("BHK,BHKE->BHE", k_BHK, state_BHKE))
    state_BHKE += k_BHK[..., None] * change_BHE[..., None, :]
    return jnp.einsum("BHK,BHKE->BHE", q_BHK, state_BHKE), state_BHKE


def chunked(
    q_BTHK: jax.Array,
    k_BTHK: jax.Array,
    v_BTHE: jax.Array,
    log_decay_BTH: jax.Array,
    beta_BTH: jax.Array,
    starts_BT: jax.Array,
    state_BHKE: jax.Array,
    R: int,
) -> tuple[jax.Array, jax.Array]:
    """What the tokens read, [B, T, H, E], and the state after them, in chunks of R tokens (Yang et al. 2024, section
    3.2, and Yang et al. 2025, section 3.3).

    What a token adds to the state depends on what those before it in its chunk added, by a triangular system of
    equations. Its solution for all chunks at once leaves one product with the state at a chunk's beginning for the scan
    over chunks. Where a document starts inside a chunk, no decay reaches across: neither from token to token, nor from
    the chunk's beginning, nor to its end.
    """
    (B, T, H, E), dtype = v_BTHE.shape, v_BTHE.dtype
    N = -(-T // R)

    def in_chunks(x_BT: jax.Array) -> jax.Array:
        """[B, T, H, ...] to [N, B, H, R, ...]. The padding at the end has beta = 0 and no decay."""
        x_BT = jnp.pad(x_BT, ((0, 0), (0, N * R - T), *[(0, 0)] * (x_BT.ndim - 2)))
        return jnp.moveaxis(x_BT.reshape(B, N, R, *x_BT.shape[2:]), (1, 3), (0, 2))

    q, k, v, log_decay, beta = map(in_chunks, (q_BTHK, k_BTHK, v_BTHE, log_decay_BTH, beta_BTH))
    # The document of each token, counted from that of the chunk's beginning.
    document = jnp.cumsum(in_chunks(starts_BT[..., None]), axis=-1)
    total = jnp.cumsum(log_decay, axis=-1)
    before = (document[..., :, None] == document[..., None, :]) & jnp.tri(R, dtype=bool)
    decay_RR = jnp.exp(jnp.where(before, total[..., :, None] - total[..., None, :], -jnp.inf))
    from_start_R = jnp.where(document == 0, jnp.exp(total), 0)
    to_end_R = jnp.where(document == document[..., -1:], jnp.exp(total[..., -1:] - total), 0)

    weighted = k * beta[..., None]
    system_RR = jnp.einsum("...RK,...SK->...RS", weighted, k) * decay_RR
    right = jnp.concatenate([v * beta[..., None], weighted * from_start_R[..., None]], axis=-1)
    solved = jax.scipy.linalg.solve_triangular(system_RR, right, lower=True, unit_diagonal=True)
    read_RR = jnp.einsum("...RK,...SK->...RS", q, k) * decay_RR

    def step(state: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        own, from_state, q, read_RR, k, kept = chunk
        change = own - from_state @ state
        y = q @ state + read_RR @ change
        return state * kept[..., None, None] + jnp.swapaxes(k, -1, -2) @ change, y

    chunks = (
        solved[..., :E], solved[..., E:], q * from_start_R[..., None], read_RR, k * to_end_R[..., None],
        from_start_R[..., -1],
    )  # fmt: skip
    state_BHKE, y = jax.lax.scan(step, state_BHKE.astype(dtype), chunks)
    return jnp.moveaxis(y, (0, 2), (1, 3)).reshape(B, N * R, H, E)[:, :T], state_BHKE


def short_convolution(
    x_BTHK: jax.Array,
    kernel_JHK: jax.Array,
    last_BJHK: jax.Array | None = None,
    *,
    valid_BT: jax.Array | None = None,
    starts_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """A causal convolution of each number over a token and the J - 1 real tokens before it in its document; and the
    inputs of the last J - 1 real tokens, [B, J - 1, H, K].

    Args:
        kernel_JHK: the last tap is that of the token itself.
        last_BJHK: the inputs of the J - 1 tokens before the first. None: zero.
        valid_BT: which tokens are real; the result at padding has no meaning. None: all.
        starts_BT: at which tokens a document starts, from which on nothing before is seen. None: at none.
    """
    (B, T, *heads), J = x_BTHK.shape, len(kernel_JHK)
    last_BJHK = jnp.zeros((B, J - 1, *heads), x_BTHK.dtype) if last_BJHK is None else last_BJHK.astype(x_BTHK.dtype)
    document_BT = None if starts_BT is None else jnp.cumsum(starts_BT, axis=1)
    if valid_BT is not None:  # the real tokens to the front
        order_BT = jnp.argsort(~valid_BT, axis=1, stable=True)
        x_BTHK = jnp.take_along_axis(x_BTHK, order_BT[..., None, None], axis=1)
        document_BT = None if document_BT is None else jnp.take_along_axis(document_BT, order_BT, axis=1)
    x_BSHK = jnp.concatenate([last_BJHK, x_BTHK], axis=1)
    taps = [x_BSHK[:, j : j + T] for j in range(J)]
    if document_BT is not None:
        document_BS = jnp.pad(document_BT, ((0, 0), (J - 1, 0)))
        same = [document_BS[:, j : j + T] == document_BT for j in range(J)]
        taps = [jnp.where(own_BT[..., None, None], x, 0) for own_BT, x in zip(same, taps)]
    y_BTHK = sum(x * tap for x, tap in zip(taps, kernel_JHK.astype(x_BTHK.dtype)))
    if valid_BT is None:
        return y_BTHK, x_BSHK[:, T:]
    rank_BT = jnp.cumsum(valid_BT, axis=1)
    last_BJ = rank_BT[:, -1:] + jnp.arange(J - 1)
    y_BTHK = jnp.take_along_axis(y_BTHK, jnp.maximum(rank_BT - 1, 0)[..., None, None], axis=1)
    return y_BTHK, jnp.take_along_axis(x_BSHK, last_BJ[..., None, None], axis=1)


def starts(documents_BT: jax.Array | None) -> jax.Array | None:
    """bool[B, T]: at which tokens a document other than the first starts. None: rows are not packed."""
    if documents_BT is None:
        return None
    return jnp.diff(documents_BT, axis=1, prepend=documents_BT[:, :1]) != 0


def normalized(x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """Heads of length 1."""
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + epsilon)


class GatedDeltaNet(nn.Module):
    """The layer, in the place of attention: queries, keys and values pass a short convolution, and what is read from
    the state is normalised and multiplied by a gate (Yang et al. 2025, section 3.4)."""

    num_key_heads: int
    num_value_heads: int
    key_dim: int
    value_dim: int
    conv_size: int
    activation: str
    """After the convolution."""
    epsilon: float
    compute: Compute
    init: Any = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, state: State | None, valid_BT: jax.Array | None, starts_BT: jax.Array | None
    ) -> tuple[jax.Array, State]:
        """What the tokens read, [B, T, D], and the state after them; a state of None is that before the first token."""
        compute, wide, masks = (
            self.compute,
            self.compute.accumulation_dtype,
            {"valid_BT": valid_BT, "starts_BT": starts_BT},
        )
        project = functools.partial(compute.dense_general, axis=-1, use_bias=False, kernel_init=self.init)
        keys, values = (self.num_key_heads, self.key_dim), (self.num_value_heads, self.value_dim)
        before, matrices = (None, None, None), None
        if state is not None:
            before, matrices = from_cache_layout(state.inputs), state.matrices

        mixed, inputs = [], []
        for name, heads, last in zip(("query", "key", "value"), (keys, keys, values), before):
            x, last = ShortConvolution(self.conv_size, compute, self.init, name=f"{name}_conv")(
                project(heads, name=name)(x_BTD), last, **masks
            )
            mixed.append(ACTIVATIONS[self.activation](x))
            inputs.append(last)
        q_BTGK, k_BTGK, v_BTHE = mixed
        q_BTGK, k_BTGK = (normalized(x.astype(wide)) for x in (q_BTGK, k_BTGK))

        per_head = lambda name: project(self.num_value_heads, name=name)(x_BTD).astype(wide)
        log_rate_H = self.param("log_rate", _log_rate, (self.num_value_heads,), compute.param_dtype)
        shift_H = self.param("decay_shift", nn.initializers.ones, (self.num_value_heads,), compute.param_dtype)
        log_decay_BTH = -jnp.exp(log_rate_H.astype(wide)) * nn.softplus(per_head("decay") + shift_H)
        y_BTHE, matrices = gated_delta_rule(
            q_BTGK * self.key_dim**-0.5, k_BTGK, v_BTHE, log_decay_BTH, nn.sigmoid(per_head("beta")), matrices, **masks
        )
        y_BTHE = compute.rms_norm(epsilon=self.epsilon, name="out_norm")(y_BTHE)
        y_BTHE *= nn.silu(project(values, name="gate")(x_BTD))
        out = compute.dense_general(x_BTD.shape[-1], axis=(-2, -1), use_bias=False, kernel_init=self.init, name="out")
        return out(y_BTHE), State(inputs=to_cache_layout(tuple(inputs)), matrices=matrices)


class ShortConvolution(nn.Module):
    """`short_convolution` with its kernel."""

    size: int
    compute: Compute
    init: Any

    @nn.compact
    def __call__(
        self, x_BTHK: jax.Array, last_BJHK: jax.Array | None, **masks: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        kernel_JHK = self.param("kernel", self.init, (self.size, *x_BTHK.shape[2:]), self.compute.param_dtype)
        return short_convolution(x_BTHK, kernel_JHK, last_BJHK, **masks)


def _log_rate(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """The logarithms of rates of decay from 0.01 to 16."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 0.01, 16.0))
