"""A toy model on which decoding strategies are tested: its logits depend on each token in its cache and on its slot."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo.generation import beam, speculative
from transformer_zoo.generation.rules import LogitsRules
from transformer_zoo.generation.strategy import DecodeInputs, log_probs_of
from transformer_zoo.generation.token_ids import TokenIds
from transformer_zoo.nn import Cache
from transformer_zoo.nn import cache as caches

V, READ, ROOM, DRAFT = 9, 3, 8, 3  # the vocabulary, the slots of a prompt, of new tokens, and of proposed ones
STOPS = (2, 5)

FREE, FORCED = TokenIds(), TokenIds(forced_bos=3, forced_eos=(2,))


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


@functools.partial(jax.jit, static_argnames=("strategy", "seed", "size", "room", "token_ids", "scored", "draft"))
def compiled(
    strategy, prompt_BT, valid_BT, max_new, stop_ids, key=None, *, seed, size=V, room=ROOM, token_ids=FREE,
    scored=False, draft=None,
):  # fmt: skip
    """A strategy's answers on the toy, [B, N, room]; with their scores for a beam search. With `scored`, also the log
    probabilities of their tokens; with `draft`, a toy or "prompt-lookup", the numbers of tokens that were
    proposed and accepted."""
    logits, slots = toy(seed, size), READ + room + (DRAFT if draft is not None else 0)
    kept = jnp.zeros((len(prompt_BT), 1, slots, 1)).at[:, 0, :READ, 0].set(prompt_BT)
    valid_BS = jnp.broadcast_to(jnp.arange(slots) < READ, (len(prompt_BT), slots))
    cache = Cache(kv=[kept], valid_BS=valid_BS, length=jnp.asarray(READ))

    def decode_step(token_M, cache):
        start, cache = cache.length, cache.admit(jnp.ones((len(token_M), 1), bool))
        kept = caches.append(cache.kv[0], token_M[:, None, None, None], start)
        seen_MS = jnp.repeat(kept[:, 0, :, 0], len(token_M) // len(kept), axis=0)
        # The tokens of a row first, in order.
        seen_MS = jnp.take_along_axis(seen_MS, jnp.argsort(~cache.valid_BS, axis=1, stable=True), axis=1)[:, :slots]
        return logits(jnp, seen_MS, cache.valid_BS.sum(axis=1, keepdims=True)), cache.replace(kv=[kept])

    def apply_rules(n, logits_MV, new_MR):
        prompt_MT, valid_MT = (jnp.repeat(x, len(new_MR) // len(prompt_BT), axis=0) for x in (prompt_BT, valid_BT))
        return strategy.apply(
            n, logits_MV, new_MR, token_ids=token_ids, prompt_BT=prompt_MT, valid_BT=valid_MT, source_BS=prompt_MT,
            valid_BS=valid_MT, max_new=max_new, stop_ids=stop_ids,
        )  # fmt: skip

    inputs = DecodeInputs(
        logits_BV=logits(jnp, kept[:, 0, :, 0], READ), cache=cache, decode_step=decode_step, apply_rules=apply_rules,
        key=key, room=room, max_new=max_new, stop_ids=stop_ids,
    )  # fmt: skip
    if draft is not None:
        return speculated(strategy, inputs, logits, draft, prompt_BT, valid_BT)
    searches = isinstance(strategy, beam.Beam)
    answers = beam.search(strategy, inputs) if searches else strategy.decode(inputs)
    if not scored:
        return answers
    new_BNR, score_BN = answers if searches else (answers, jnp.zeros(answers.shape[:2]))
    return new_BNR, score_BN, log_probs_of(strategy, inputs, new_BNR)


def speculated(strategy, inputs, logits, draft, prompt_BT, valid_BT):
    """The answers of `compiled`, with the numbers of tokens that were proposed and accepted."""

    def reader(logits):
        def read(tokens_MT, valid_MT, cache):
            M, T = tokens_MT.shape
            slot_MT = jnp.broadcast_to(jnp.reshape(cache.length, (-1, 1)) + jnp.arange(T), (M, T))
            kept = cache.kv[0].at[jnp.arange(M)[:, None], 0, slot_MT, 0].set(jnp.where(valid_MT, tokens_MT, 0))
            logits_MTV = jnp.stack([logits(jnp, kept[:, 0, :, 0], slot_MT[:, [t]] + 1) for t in range(T)], axis=1)
            return logits_MTV, cache.replace(kv=[kept], length=cache.length + T)

        return read

    proposes = (
        speculative.by_lookup(prompt_BT, valid_BT, DRAFT)
        if draft == "prompt-lookup"
        else speculative.by_model(strategy, inputs, reader(draft), inputs.logits_BV.shape[1], DRAFT, inputs.cache)
    )
    return speculative.decode(strategy, inputs, reader(logits), proposes)


def under_rules(logits, rules: LogitsRules, read, new, max_new, stops, token_ids=FREE) -> np.ndarray:
    """The logits or log probabilities of the next token under the rules, in plain numpy. The prompt is the source."""
    ids, scores, whole = token_ids, np.array(logits, float), [*read, *new]
    ends_with = lambda words: len(whole) >= len(words) and whole[len(whole) - len(words) :] == words
    first = rules.forced_first if rules.forced_first is not None else ids.forced_bos if len(read) == 1 else None
    for words, bias in rules.sequence_bias:
        scores[words[-1]] += bias if ends_with([*words[:-1]]) else 0
    for tokens, penalty in ((read, 1 / rules.encoder_repetition_penalty), (whole, rules.repetition_penalty)):
        for token in set(tokens):
            scores[token] *= penalty if scores[token] < 0 else 1 / penalty
    for tokens, size in ((whole, rules.no_repeat_ngram_size), (read, rules.encoder_no_repeat_ngram_size)):
        ngrams = [[*tokens[i : i + size]] for i in range(len(tokens) - size + 1)] if size else []
        scores[[ngram[-1] for ngram in ngrams if ends_with(ngram[:-1])]] = -np.inf
    for words in rules.bad_words:
        if words not in [(end,) for end in ids.eos] and ends_with([*words[:-1]]):
            scores[words[-1]] = -np.inf
    if len(new) < rules.min_new_tokens or (not rules.min_new_tokens and len(whole) < rules.min_length):
        scores[list(stops)] = -np.inf
    scores[list(rules.suppressed)] = -np.inf
    if len(new) == (first is not None):
        scores[list(rules.begin_suppressed)] = -np.inf
    for position, forced in ((0, () if first is None else (first,)), (max_new - 1, ids.forced_eos)):
        if forced and position == len(new):
            scores = np.where(np.isin(np.arange(len(scores)), forced), 0.0, -np.inf)
    return scores - np.log(np.exp(scores).sum()) if getattr(rules, "renormalize", False) else scores
