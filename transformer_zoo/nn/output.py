"""What every model returns."""

from typing import Any

import jax
from flax import struct


@struct.dataclass
class Output:
    """One struct for all families and tasks. What a task has not is None; what a caller does not use, `jax.jit` leaves
    uncomputed.

    Attributes:
        hidden_BTD: the last hidden states, after the final norm where there is one.
        logits: [B, T, V] for language models, [B, C] or [B, T, C] for classifiers, [B, T, 2] (start, end) for answers.
        pooled_BD: the pooler's output, where the family has a pooler.
        next_sentence_B2: for pretraining, the second head.
        cache: the cache with this call's keys and values in it, if one was given.
        encoded_BSD: the encoder's output, for encoder-decoders.
    """

    hidden_BTD: jax.Array
    logits: jax.Array | None = None
    pooled_BD: jax.Array | None = None
    next_sentence_B2: jax.Array | None = None
    cache: Any = None
    encoded_BSD: jax.Array | None = None
