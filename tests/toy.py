"""A toy model on which decoding strategies are tested: its logits depend on each token in its cache and on its slot."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.generation import beam
from transformer_zoo.generation.rules import LogitsRules
from transformer_zoo.generation.strategy import DecodeInputs
from transformer_zoo.nn import Cache

V, READ, ROOM = 9, 3, 8  # the vocabulary, the slots of a prompt, and those of new tokens
STOPS = (2, 5)


@dataclasses.dataclass(frozen=True)
class Forcing:
    """A configuration with forced tokens."""

    forced_bos_id: int | None = 3
    forced_eos_id: int | None = 2


def toy(seed: int, size: int = V):
    """Logits [M, V] of the token after the first `length` of the tokens [M, S]."""
    draw = np.random.default_rng(seed)
    weight_S, turn_V, phase_V = draw.uniform(0.3, 1, 64), draw.uniform(1, 3, size), draw.uniform(0, 6, size)

    def scores(xp, tokens_MS, length):
        S = tokens_MS.shape[1]
        sum_M = xp.where(xp.arange(S) < length, (tokens_MS + 1) * weight_S[:S], 0).sum(axis=1)
        return 2 * xp.sin(sum_M[:, None] * turn_V + phase_V)

    return scores


def read_of(rows: int, seed: int, size: int = V) -> np.ndarray:
    return np.random.default_rng(seed + 100).integers(0, size, (rows, READ)).astype(np.int32)


@functools.partial(jax.jit, static_argnames=("strategy", "seed", "size", "room", "config"))
def compiled(
    strategy, prompt_BT, valid_BT, max_new, stop_ids, key=None, *, seed, size=V, room=ROOM, config=None
):  # fmt: skip
    """A strategy's answers on the toy, [B, N, room]; with their scores for a beam search."""
    logits, slots = toy(seed, size), READ + room
    kept = jnp.zeros((len(prompt_BT), 1, slots, 1)).at[:, 0, :READ, 0].set(prompt_BT)
    cache = Cache(kv=[kept], valid_BS=jnp.ones((len(prompt_BT), slots), bool), length=jnp.asarray(READ))

    def decode_step(token_M, cache):
        kept = jax.lax.dynamic_update_slice_in_dim(
            cache.kv[0], token_M[:, None, None, None].astype(float), cache.length, axis=-2
        )
        cache = cache.replace(kv=[kept], length=cache.length + 1)
        return logits(jnp, kept[:, 0, :, 0], cache.length), cache

    def apply_rules(n, logits_MV, new_MR):
        times = len(new_MR) // len(prompt_BT)
        return strategy.apply(
            n, logits_MV, new_MR, config=config, prompt_BT=jnp.repeat(prompt_BT, times, axis=0),
            valid_BT=jnp.repeat(valid_BT, times, axis=0), max_new=max_new, stop_ids=stop_ids,
        )  # fmt: skip

    inputs = DecodeInputs(
        logits_BV=logits(jnp, kept[:, 0, :, 0], READ), cache=cache, decode_step=decode_step, apply_rules=apply_rules,
        key=key, room=room, max_new=max_new, stop_ids=stop_ids,
    )  # fmt: skip
    return beam.search(strategy, inputs) if isinstance(strategy, beam.Beam) else strategy.decode(inputs)


def under_rules(logits, rules: LogitsRules, read, new, max_new, stops, config) -> np.ndarray:
    """The logits or log probabilities of the next token under the rules, in plain numpy."""
    scores, whole, size = np.array(logits, float), [*read, *new], rules.no_repeat_ngram_size
    for token in set(whole):
        scores[token] *= rules.repetition_penalty if scores[token] < 0 else 1 / rules.repetition_penalty
    scores[list(rules.suppressed)] = -np.inf
    if len(new) < rules.min_new_tokens:
        scores[list(stops)] = -np.inf
    if size:
        seen = {tuple(whole[i : i + size]) for i in range(len(whole) - size + 1)}
        last = whole[len(whole) - size + 1 :]
        scores[[token for token in range(len(scores)) if (*last, token) in seen]] = -np.inf
    first = getattr(config, "forced_bos_id", None) if rules.forced_first is None else rules.forced_first
    for position, token in ((0, first), (max_new - 1, getattr(config, "forced_eos_id", None))):
        if token is not None and position == len(new):
            scores = np.where(np.arange(len(scores)) == token, 0.0, -np.inf)
    return scores - np.log(np.exp(scores).sum()) if getattr(rules, "renormalize", False) else scores
