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

    The output layer is applied to one chunk of the length at a time. A chunk's gradients are computed right after its
    loss, so that the logits of only one chunk are ever alive and no matrix product is computed twice; without
    differentiation, they are not computed at all.

    Args:
        logits_of: (params, hidden_BtD) -> logits_BtV in at least float32, for any part of the length.
        params: gradients flow to these (and cost nothing where `logits_of` does not use them) and to hidden_BTD.
        targets_BT: ids of the tokens to predict.
        weights_BT: of each token; where it is 0, the target may be any integer. No gradient flows to them.
        chunks: they are strided, so that a length divided over devices stays so.
        smoothing: the share of a target that is spread evenly over all tokens, itself among them (Szegedy et al. 2016,
            section 7; Vaswani et al. 2017, section 5.4).
        vocab_size: tokens in the vocabulary, if there are more logits; needed for smoothing.

    Returns:
        The sum of the losses, in the dtype of the logits, and other sums by name: `correct`, of the weights of tokens
        whose target has the highest logit; and with smoothing `unsmoothed`, of the losses without it.

    Raises:
        ValueError: the chunks do not divide the length; a smoothing outside [0, 1).
    """
    length = targets_BT.shape[1]
    if chunks < 1 or length % chunks:
        raise ValueError(f"chunks is {chunks}, which does not divide the length {length}: choose one that does")
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing is {smoothing}: it must be at least 0 and less than 1")
    split = tuple(_split(x, chunks) for x in (hidden_BTD, targets_BT, weights_BT))
    chunk = jax.ShapeDtypeStruct(split[0].shape[1:], hidden_BTD.dtype)
    head, used = jax.closure_convert(lambda hidden: logits_of(params, hidden), chunk)
    sums = functools.partial(_sums, head, smoothing, vocab_size)
    # With one chunk there is no memory to save, and the usual backward pass spares a scaling of the gradients.
    return _total(sums, used, *split) if chunks > 1 else sums(used, hidden_BTD, targets_BT, weights_BT)


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
    # Where the weight is 0 the target may lie outside the vocabulary.
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
def _total(sums: Callable, used: list, *chunks: jax.Array) -> tuple:
    return _accumulate(lambda chunk: (sums(used, *chunk), None), chunks)[0]


def _forward(sums: Callable, used: list, *chunks: jax.Array) -> tuple:
    differentiated = jax.value_and_grad(sums, argnums=(0, 1), has_aux=True)

    def sums_and_gradients(chunk: tuple) -> tuple:
        values, (d_used, d_hidden) = differentiated(used, *chunk)
        in_float32 = [d.astype(jnp.promote_types(d.dtype, jnp.float32)) for d in d_used]
        return (values, in_float32), d_hidden

    (values, d_used), d_hidden = _accumulate(sums_and_gradients, chunks)
    return values, ([d.astype(x.dtype) for d, x in zip(d_used, used, strict=True)], d_hidden)


def _backward(sums: Callable, gradients: tuple, cotangents: tuple) -> tuple:
    d_used, d_hidden = jax.tree.map(lambda d: (d * cotangents[0]).astype(d.dtype), gradients)
    return d_used, d_hidden, None, None


_total.defvjp(_forward, _backward)


def _accumulate(function: Callable, chunks: tuple) -> tuple:
    """The sum over the chunks of the first value that `function` returns, and the second stacked."""
    one = jax.eval_shape(function, jax.tree.map(lambda x: x[0], chunks))[0]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), one)

    def step(total: Any, chunk: tuple) -> tuple:
        one, each = function(chunk)
        return jax.tree.map(jnp.add, total, one), each

    return jax.lax.scan(step, zeros, chunks)
