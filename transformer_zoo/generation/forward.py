"""The model's forward passes of decoding: prefill, then one step a token. Decoders and encoder-decoders alike."""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo import registry
from transformer_zoo.generation.strategy import repeat_rows
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.nn import Cache
from transformer_zoo.nn.stack import Layers


def prefill(
    model: Any,
    params: Any,
    tokens_BT: jax.Array,
    valid_BT: jax.Array,
    prompt_BP: jax.Array,
    prompt_valid_BP: jax.Array,
    *,
    room: int,
    by_layer: bool,
    chunk: int | None = None,
    shared: int = 0,
) -> tuple[jax.Array, Cache]:
    """Reads the prompts; an encoder-decoder encodes the sources and reads the beginnings of the targets.

    Args:
        tokens_BT: prompts or sources.
        valid_BT: which of these tokens are real. Prompts are padded on the left.
        prompt_BP, prompt_valid_BP: the decoder's tokens before the first new one, likewise: the prompts again, or the
            beginnings of the targets.
        room: slots of the cache for new tokens.
        by_layer: the parameters are `Layers`, and so is the cache.
        chunk: a decoder reads so many tokens of each prompt at a time, of which their number is a multiple. None: all.
        shared: so many first tokens are the same in all prompts of a decoder, and are read once.

    Returns:
        The logits [B, V] of the first new token, in at least float32, and the cache.
    """
    config, B = model.config, len(tokens_BT)
    is_encoder_decoder = registry.is_encoder_decoder(config)
    length = prompt_BP.shape[1] - is_encoder_decoder + room
    # Padding takes slots but no positions, of which there may be fewer.
    fitting = length if config.max_length is None else min(length, config.max_length)
    cache = (
        registry.module_of(config).init_cache(config, 1 if shared else B, fitting, model.compute.dtype).widen(length)
    )
    cache = cache.replace(kv=jax.tree.map(Layers.of, cache.kv)) if by_layer else cache
    if not is_encoder_decoder:
        if shared:
            first = jnp.argmax(valid_BT[0])
            tokens_1P = jax.lax.dynamic_slice_in_dim(tokens_BT[:1], first, shared, axis=1)
            _, cache = _whole(model, params, tokens_1P, jnp.ones(tokens_1P.shape, bool), cache, chunk)
            cache, rest_BT = repeat_rows(cache, B), valid_BT & (jnp.cumsum(valid_BT, axis=1) > shared)
            tokens_BT, valid_BT = tokens_BT[:, shared:], rest_BT[:, shared:]
        return _whole(model, params, tokens_BT, valid_BT, cache, chunk)
    encoded_BSD = model.apply({"params": params}, tokens_BT, valid_BT, method="encode")
    logits_BV, cache = _last_logits(
        model, params, prompt_BP, encoded_BSD, valid_BT, prompt_valid_BP, cache=cache, method="decode"
    )
    # Without the barrier, XLA moves the transposition of the source's keys and values into each step of the loop.
    return logits_BV, jax.lax.optimization_barrier(cache)


def _whole(
    model: Any, params: Any, tokens_BT: jax.Array, valid_BT: jax.Array, cache: Cache, chunk: int | None
) -> tuple[jax.Array, Cache]:
    """Reads a decoder's prompts, by chunks if there are several: by one program for all of them, save those in front
    that are all padding."""
    T = tokens_BT.shape[1]
    if chunk is None or chunk >= T:
        return _last_logits(model, params, tokens_BT, valid_BT, cache=cache)

    def read(i: jax.Array | int, cache: Cache) -> tuple[jax.Array, Cache]:
        part = lambda x_BT: jax.lax.dynamic_slice_in_dim(x_BT, i * chunk, chunk, axis=1)
        out = model.apply({"params": params}, part(tokens_BT), part(valid_BT), cache=cache)
        return out.hidden_BTD[:, -1:], out.cache

    first = jnp.argmax(valid_BT.any(axis=0)).astype(jnp.int32) // chunk
    hidden, cache = jax.eval_shape(read, 0, cache)[0], cache.replace(length=cache.length + first * chunk)
    hidden_B1D, cache = jax.lax.fori_loop(
        first, T // chunk, lambda i, state: read(i, state[1]), (jnp.zeros(hidden.shape, hidden.dtype), cache)
    )
    return _logits(model, params, hidden_B1D), cache


def decoder_prompt(
    config: Any, token_ids: TokenIds, tokens_BT: jax.Array, valid_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The decoder's tokens before the first new one where no target has a prefix, and which are real: the prompts, or
    the start token."""
    if not registry.is_encoder_decoder(config):
        return tokens_BT, valid_BT
    shape = (tokens_BT.shape[0], 1)
    return jnp.full(shape, token_ids.decoder_start, jnp.int32), jnp.ones(shape, bool)


def decode_step(model: Any, params: Any, token_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """The logits [B, V] of the token after this one, and the cache with this one."""
    if registry.is_encoder_decoder(model.config):
        return _last_logits(model, params, token_B[:, None], None, cache=cache, method="decode")
    return _last_logits(model, params, token_B[:, None], cache=cache)


def read(model: Any, params: Any, tokens_MT: jax.Array, valid_MT: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """The logits [M, T, V] after each of T more tokens of the decoder, of which some are real, and the cache with
    them."""
    inputs, kwargs = (tokens_MT, valid_MT), {}
    if registry.is_encoder_decoder(model.config):
        inputs, kwargs = (tokens_MT, None, None, valid_MT), {"method": "decode"}
    out = model.apply({"params": params}, *inputs, cache=cache, **kwargs)
    return out.logits, out.cache


def _last_logits(model: Any, params: Any, *inputs: Any, **kwargs: Any) -> tuple[jax.Array, Cache]:
    out = model.apply({"params": params}, *inputs, **kwargs)
    # Only of the last position: nothing uses `out.logits`, so XLA does not compute the others.
    return _logits(model, params, out.hidden_BTD[:, -1:]), out.cache


def _logits(model: Any, params: Any, hidden_B1D: jax.Array) -> jax.Array:
    return model.apply({"params": params}, hidden_B1D, method="logits")[:, 0, : model.config.vocab_size]
