"""Losses over a large vocabulary without ever holding all of its logits."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def cross_entropy(
    logits_of: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    hidden_BTD: jax.Array,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    chunks: int = 1,
    smoothing: float = 0.0,
    vocab_size: int | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The cross entropy of every token against its target, in nats, summed with these weights.

    The output layer is applied to a piece of the length at a time. A piece's gradients are computed right behind its
    loss, so that only one piece of the logits is ever alive and no matrix product is computed twice; where nobody
    differentiates, they are not computed at all.

    Args:
        logits_of: (params, hidden_BtD) -> logits_BtV in at least float32, for any part of the length.
        params: gradients flow to these (and cost nothing where `logits_of` does not use them) and to hidden_BTD.
        targets_BT: ids of the tokens to predict.
        weights_BT: how much a token counts; where it is 0, any target will do. No gradient flows to them.
        chunks: the number of pieces. They are strided, so that a length divided over devices stays so.
        smoothing: the share of a target that is spread evenly over all tokens, itself among them (Szegedy et al. 2016,
            section 7; Vaswani et al. 2017, section 5.4).
        vocab_size: how many tokens there are, if the logits behind theirs stand for none; needed for smoothing.

    Returns:
        The sum of the losses, in the dtype of the logits, and sums by name: of the tokens whose target scored highest,
        `correct`; and with smoothing what the losses are without it, `unsmoothed`.

    Raises:
        ValueError: the pieces do not divide the length; a smoothing that is no share of a whole.
    """
    length = targets_BT.shape[1]
    if chunks < 1 or length % chunks:
        raise ValueError(f"chunks is {chunks}, which does not divide the length {length}: choose one that does")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}: it must be at least 0 and less than 1")
    pieces = tuple(_split(x, chunks) for x in (hidden_BTD, targets_BT, weights_BT))
    piece = jax.ShapeDtypeStruct(pieces[0].shape[1:], hidden_BTD.dtype)
    head, used = jax.closure_convert(lambda hidden: logits_of(params, hidden), piece)
    sums = functools.partial(_sums, head, smoothing, vocab_size)
    # In one piece there is nothing to save, and the usual backward pass spares a scaling of the gradients.
    return _total(sums, used, *pieces) if chunks > 1 else sums(used, hidden_BTD, targets_BT, weights_BT)


def _split(x_BT: jax.Array, chunks: int) -> jax.Array:
    """[B, T, ...] to [chunks, B, T / chunks, ...]."""
    batch, length, *rest = x_BT.shape
    return jnp.moveaxis(x_BT.reshape(batch, length // chunks, chunks, *rest), 2, 0)


def _sums(
    head: Callable, smoothing: float, vocab_size: int | None,
    used: list, hidden: jax.Array, targets: jax.Array, weights: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:  # fmt: skip
    logits = head(hidden, *used)
    weights = weights.astype(logits.dtype)
    highest = jax.lax.stop_gradient(logits.max(axis=-1))
    # Where nothing is to be predicted the target may be no token at all.
    score = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="clip")[..., 0]
    total = highest + jnp.log(jnp.exp(logits - highest[..., None]).sum(axis=-1))
    nats = ((total - score) * weights).sum()
    correct = ((score == highest) * weights).sum()
    if not smoothing:
        return nats, {"correct": correct}
    size = vocab_size or logits.shape[-1]
    mean = jnp.where(jnp.arange(logits.shape[-1]) < size, logits, 0).sum(axis=-1) / size
    evenly = ((total - mean) * weights).sum()
    return (1 - smoothing) * nats + smoothing * evenly, {"correct": correct, "unsmoothed": nats}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(sums: Callable, used: list, *pieces: jax.Array) -> tuple:
    return _accumulate(lambda piece: (sums(used, *piece), None), pieces)[0]


def _forward(sums: Callable, used: list, *pieces: jax.Array) -> tuple:
    differentiated = jax.value_and_grad(sums, argnums=(0, 1), has_aux=True)

    def sums_and_gradients(piece: tuple) -> tuple:
        values, (d_used, d_hidden) = differentiated(used, *piece)
        wide = [d.astype(jnp.promote_types(d.dtype, jnp.float32)) for d in d_used]
        return (values, wide), d_hidden

    (values, d_used), d_hidden = _accumulate(sums_and_gradients, pieces)
    return values, ([d.astype(x.dtype) for d, x in zip(d_used, used, strict=True)], d_hidden)


def _backward(sums: Callable, gradients: tuple, cotangents: tuple) -> tuple:
    d_used, d_hidden = jax.tree.map(lambda d: (d * cotangents[0]).astype(d.dtype), gradients)
    return d_used, d_hidden, None, None


_total.defvjp(_forward, _backward)


def _accumulate(function: Callable, pieces: tuple) -> tuple:
    """The sum over the pieces of the first thing that `function` returns, and the second stacked."""
    one = jax.eval_shape(function, jax.tree.map(lambda x: x[0], pieces))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)

    def step(total: Any, piece: tuple) -> tuple:
        more, each = function(piece)
        return jax.tree.map(jnp.add, total, more), each

    return jax.lax.scan(step, zeros, pieces)
