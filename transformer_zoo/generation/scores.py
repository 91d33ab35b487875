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
    start_BT = jnp.full((B, 1), config.decoder_start_id, jnp.int32)
    return _read(model, params, start_BT, encoded_BSD, valid_BT, cache=cache, method="decode")


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


def forced(config: Any, n: jax.Array | int, max_new: jax.Array | int, scores_BV: jax.Array) -> jax.Array:
    """The scores of the new token n, from 0, as the model's configuration wants the first and the last of them to be:
    where it says a token, no other has a chance."""
    places = ((0, getattr(config, "forced_bos_id", None)), (max_new - 1, getattr(config, "forced_eos_id", None)))
    for place, token in places:
        if token is not None:
            only_V = jnp.where(jnp.arange(scores_BV.shape[1]) == token, 0, -jnp.inf)
            scores_BV = jnp.where(n == place, only_V, scores_BV)
    return scores_BV
