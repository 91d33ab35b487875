"""The scores of the next token, for whatever chooses among them: of the first one, and of each that follows.

Of a decoder and of an encoder-decoder alike. What was read lies in the cache: a value, whose rows one may reorder.
"""

from typing import Any

import jax
import jax.numpy as jnp

from transformer_zoo import registry
from transformer_zoo.nn import Cache
from transformer_zoo.nn.stack import Layers


def first(
    model: Any, params: Any, tokens_BT: jax.Array, valid_BT: jax.Array, *, room: int, by_layer: bool
) -> tuple[jax.Array, Cache]:
    """Reads prompts; or encodes sources, whose keys and values it keeps, and reads the token that targets start with.

    Args:
        tokens_BT: prompts or sources.
        valid_BT: which of these tokens are real; of prompts the last ones are.
        room: so many new tokens the cache has slots for.
        by_layer: the parameters are `Layers`, and the cache is to be.

    Returns:
        The scores [B, V] of the first new token, in at least float32, and the cache.
    """
    config, (B, T) = model.config, tokens_BT.shape
    beside = registry.is_encoder_decoder(config)
    cache = registry.module_of(config).init_cache(config, B, room if beside else T + room, model.compute.dtype)
    cache = cache.replace(kv=Layers.of(cache.kv)) if by_layer else cache
    if not beside:
        return _read(model, params, tokens_BT, valid_BT, cache=cache)
    encoded_BSD = model.apply({"params": params}, tokens_BT, valid_BT, method="encode")
    start_BT, _ = read(config, tokens_BT, valid_BT)
    scores_BV, cache = _read(model, params, start_BT, encoded_BSD, valid_BT, cache=cache, method="decode")
    # Or a compiler that sees the source's keys and values put in order before a loop puts them in order in each step.
    return scores_BV, jax.lax.optimization_barrier(cache)


def read(config: Any, tokens_BT: jax.Array, valid_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What the decoder reads before it writes, and which of it is real: the prompts, or the token that targets start
    with."""
    if not registry.is_encoder_decoder(config):
        return tokens_BT, valid_BT
    starts = (tokens_BT.shape[0], 1)
    return jnp.full(starts, config.decoder_start_id, jnp.int32), jnp.ones(starts, bool)


def following(model: Any, params: Any, token_B: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """The scores [B, V] of the token after this one, and the cache with it."""
    if registry.is_encoder_decoder(model.config):
        return _read(model, params, token_B[:, None], None, cache=cache, method="decode")
    return _read(model, params, token_B[:, None], cache=cache)


def _read(model: Any, params: Any, *inputs: Any, **how: Any) -> tuple[jax.Array, Cache]:
    out = model.apply({"params": params}, *inputs, **how)
    # The logits of the last position; `out.logits`, those of all, are never computed.
    logits_BTV = model.apply({"params": params}, out.hidden_BTD[:, -1:], method="logits")
    return logits_BTV[:, 0, : model.config.vocab_size], out.cache
