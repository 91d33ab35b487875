"""Prefill, then decode with the cache, in one compiled program."""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import registry, trees
from transformer_zoo.generation import beam, scores
from transformer_zoo.generation.beam import Beam
from transformer_zoo.generation.rules import Rules
from transformer_zoo.nn import checks
from transformer_zoo.nn.stack import STACKED, Layers

BUCKET = 32  # prompts and answers are padded to multiples of it, so that few lengths are ever compiled


def generate(
    m: Any,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | np.ndarray | jax.Array,
    *,
    max_new_tokens: int,
    sampling: Rules | None = None,
    seed: int = 0,
    stop: int | str | Sequence[int | str] | None = None,
    valid_BT: Any = None,
    language: str | None = None,
    source_language: str | None = None,
) -> str | list[str] | list[list[str]] | np.ndarray:
    """Continues each prompt, and returns what is new; an encoder-decoder reads the prompts, and writes beside them.

    A row's answer depends on its prompt, its place in the batch and the seed, and not on the other rows. A row ends
    with the model's `eos_id` or a stop token; when all have ended, so does the loop.

    Args:
        m: a model, its parameters and its tokenizer, as `from_pretrained` and `from_config` return them.
        prompts: a text or several, or token ids: [B, T], or B rows of unequal lengths.
            Text that an encoder-decoder reads gets what its tokenizer adds to one, such as its end, and special tokens
            that it spells out, such as T5's <extra_id_0>, are read as such.
        max_new_tokens: at most so many for a prompt.
        sampling: how tokens are chosen. None: as the checkpoint's generation_config.json says, `m.sampling`, and
            greedily if it says nothing. Else `Greedy()`, `Sample(temperature=, top_k=, top_p=)` or `Beam(num_beams=,
            length_penalty=, ...)`, each with the `Rules` of what may be written, such as `no_repeat_ngram_size=3`.
        seed: the same seed, the same answers.
        stop: more token ids that end a row; beside text prompts also texts, before the first of which the answer is
            cut off.
        valid_BT: for an array of ids, which of them are real; the rest is padding, on either side.
        language: for a model of several languages, the code of the one to write, such as "fr_XX".
        source_language: the code of the one that texts are in, where the tokenizer tells the model.

    Returns:
        For text the new text, without what ended it: a string for a string, a list for a list. For token ids
        int32[B, max_new_tokens], where a row that has ended repeats the token that ended it. If the sampling has
        num_return_sequences > 1, instead of each text a list of so many, or int32[B, N, max_new_tokens].

    Raises:
        ValueError: an empty batch or prompt, ids outside of the vocabulary, more tokens than the model has positions,
            text without a tokenizer, a model without a language model's output, a language that there is not.
    """
    config = m.model.config
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: ask for at least 1")
    _check_model(m.model)
    sampling = m.sampling if sampling is None else sampling
    _check_sampling(sampling, config)
    stops = [stop] if isinstance(stop, (int, str)) else list(stop or ())
    stop_texts = [s for s in stops if isinstance(s, str)]
    stop_ids = [s for s in stops if not isinstance(s, str)]
    if stop_ids:
        checks.check_ids(np.asarray(stop_ids)[None], config.vocab_size, "stop", "the vocabulary")
    if config.eos_id is not None:
        stop_ids.append(config.eos_id)
    stop_ids = list(dict.fromkeys(stop_ids))
    if language is not None:
        m, sampling, source_language = _in_language(m, sampling, language, source_language)
    elif registry.is_encoder_decoder(config) and config.decoder_start_id is None:
        raise ValueError("the model starts a text with its language: say which, such as language='fr_XX'")

    texts = [prompts] if isinstance(prompts, str) else prompts
    if is_text := len(texts) > 0 and isinstance(texts[0], str):
        rows = _encode(m, texts, source_language)
    else:
        rows = _rows(prompts, valid_BT)
        if stop_texts:
            raise ValueError(f"stop={stop_texts}: texts end text prompts only; for token ids, pass token ids")
        if source_language is not None:
            raise ValueError(f"language {source_language!r} is said in the source: put its token among the token ids")
    _check_rows(rows, config, max_new_tokens)

    new_BNT = _run(m, rows, max_new_tokens, sampling, seed, stop_ids)
    several = new_BNT.shape[1] > 1
    if not is_text:
        return new_BNT if several else new_BNT[:, 0]
    befores = [[]] * len(rows) if registry.is_encoder_decoder(config) else rows
    answers = [
        [text_of(m.tokenizer, new, stop_ids, before, stop_texts) for new in new_NT]
        for before, new_NT in zip(befores, new_BNT)
    ]
    answers = answers if several else [answer for (answer,) in answers]
    return answers[0] if isinstance(prompts, str) else answers


def _check_model(model: Any) -> None:
    family = registry.module_of(model.config)
    if not hasattr(family, "init_cache"):
        raise ValueError(f"{registry.family_of(model.config)} is an encoder and does not generate")
    writes = next(task for task in ("causal-lm", "seq2seq-lm") if task in family.PUBLISHED.tasks)
    if model.task != writes:
        raise ValueError(f"a model for the task {model.task!r} does not generate: load it with task={writes!r}")


def _check_sampling(sampling: Any, config: Any) -> None:
    if not isinstance(sampling, Rules):
        raise TypeError(f"sampling={sampling!r}: pass Greedy(), Sample(temperature=, ...) or Beam(num_beams=, ...)")
    first = () if sampling.forced_first is None else (sampling.forced_first,)
    for name, ids in (("suppressed", sampling.suppressed), ("forced_first", first)):
        if ids:
            checks.check_ids(np.asarray(ids)[None], config.vocab_size, name, "the vocabulary")
    if isinstance(sampling, Beam) and sampling.num_beams > config.vocab_size:
        raise ValueError(
            f"num_beams={sampling.num_beams} is more than there are tokens to begin with, {config.vocab_size}: "
            "search with fewer"
        )


def _in_language(m: Any, sampling: Rules, code: str, source_code: str | None) -> tuple[Any, Rules, str | None]:
    """The model, the sampling and the language of the source's template that have the answers written in a language.

    Where it is said is seen in a target as the tokenizer frames it: at its beginning, and so it is the first token to
    be written; at its end, which targets of such models start from; or nowhere, and so it is the source that says it.
    """
    if (tokenizer := m.tokenizer) is None:
        raise ValueError(f"language={code!r}: the model came without a tokenizer, which knows the languages")
    token = tokenizer.language_id(code)
    frame = [int(i) for i in tokenizer.encode("", template=True, target=True, language=code).ids]
    if token not in frame:
        if source_code is not None:
            raise ValueError(
                f"source_language={source_code!r}: to this model a source says in which language the answer is to be, "
                "and not its own"
            )
        return m, sampling, code
    if frame[0] == token:
        return m, dataclasses.replace(sampling, forced_first=token), source_code
    config = dataclasses.replace(m.model.config, decoder_start_id=token)
    return dataclasses.replace(m, model=m.model.clone(config=config)), sampling, source_code


def _check_rows(rows: list[np.ndarray], config: Any, max_new_tokens: int) -> None:
    if not rows:
        raise ValueError("the batch is empty: pass at least one prompt")
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"prompt {i} is not a row of token ids: pass [B, T], or a list of rows")
        if not row.size:
            raise ValueError(f"prompt {i} is empty: there is nothing to continue")
        checks.check_ids(row[None], config.vocab_size, f"prompt {i}", "the vocabulary")
        beside = registry.is_encoder_decoder(config)  # for each of the two, it has as many positions
        needed = max(len(row), max_new_tokens) if beside else len(row) + max_new_tokens
        if config.max_length is not None and needed > config.max_length:
            raise ValueError(
                f"prompt {i} has {len(row)} tokens and max_new_tokens is {max_new_tokens}, and the model has "
                f"{config.max_length} positions: shorten the prompt or ask for fewer tokens"
            )


def _rows(prompts: Any, valid_BT: Any) -> list[np.ndarray]:
    """The real tokens of each prompt."""
    rows = [np.asarray(row) for row in prompts]
    if valid_BT is None:
        return rows
    checks.check_like(valid_BT, prompts, "valid_BT")
    return [row[keep] for row, keep in zip(rows, np.asarray(valid_BT, bool))]


def _encode(m: Any, texts: Sequence[str], language: str | None) -> list[np.ndarray]:
    """Text as rows of ids: of a source as its tokenizer frames it; of a prompt as it is, and where there is none, the
    token that starts a text, if there is one."""
    if (tokenizer := m.tokenizer) is None:
        raise ValueError("the model came without a tokenizer: pass token ids instead of text")
    if registry.is_encoder_decoder(m.model.config):
        encodings = tokenizer.encode_batch(texts, special=True, template=True, language=language)
        return [encoding.ids for encoding in encodings]
    if language is not None:
        raise ValueError(f"source_language={language!r}: there is no source; the prompt is gone on with")
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    return [np.asarray(tokenizer.encode(text).ids if text else start, np.int32) for text in texts]


def text_of(
    tokenizer: Any,
    new: np.ndarray,
    stop_ids: Sequence[int],
    before: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
) -> str:
    """The text of new tokens: that of all tokens less what stood before, since a token's text may depend on that.

    A model's table may be longer than its tokenizer's, as T5's by 28 rows: what these stand for is no text.
    """
    ends = np.flatnonzero(np.isin(new, stop_ids))
    new = new[: ends[0]] if ends.size else new
    new = new[new < tokenizer.vocab_size]
    whole, prompt = tokenizer.decode([*before, *new]), tokenizer.decode(before)
    text = whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new)
    return text[: min((at for stop in stop_texts if (at := text.find(stop)) >= 0), default=len(text))]


def _run(m: Any, rows: list[np.ndarray], max_new: int, sampling: Rules, seed: int, stop_ids: list[int]) -> np.ndarray:
    """int32[B, N, max_new], N answers to each prompt, by a program for lengths rounded up."""
    longest, positions = max(map(len, rows)), m.model.config.max_length
    room, T = _round_up(max_new), _round_up(longest)
    if positions is not None:
        beside = registry.is_encoder_decoder(m.model.config)
        room = min(room, positions if beside else positions - longest)
        T = min(T, positions if beside else positions - room)
    tokens_BT, valid_BT = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
    for i, row in enumerate(rows):
        tokens_BT[i, T - len(row) :], valid_BT[i, T - len(row) :] = row, True
    params = jax.tree.map(jnp.asarray, m.params)
    place = jax.tree.leaves(params)[0].sharding
    device, *others = place.device_set
    by_layer = not others and device.platform == "cpu"
    with jax.set_mesh(place.mesh) if others else jax.default_device(device):
        new_BNR = (_on_cpu if by_layer else _anywhere)(
            _by_layer(params, device) if by_layer else params, tokens_BT, valid_BT, jax.random.key(seed),
            np.int32(max_new), np.asarray(stop_ids, np.int32),
            model=m.model, sampling=sampling, room=room, by_layer=by_layer,
        )  # fmt: skip
    return np.asarray(new_BNR)[..., :max_new]


def lower(
    model: Any, params: trees.Tree, tokens_BT: Any, valid_BT: Any, *, max_new_tokens: int, sampling: Rules
) -> Any:
    """What `generate` runs on an accelerator, lowered for arguments of which only the shapes and places are known."""
    _check_model(model)
    ends = [] if model.config.eos_id is None else [model.config.eos_id]
    return _anywhere.lower(
        params, tokens_BT, valid_BT, jax.eval_shape(jax.random.key, 0), np.int32(max_new_tokens),
        np.asarray(ends, np.int32), model=model, sampling=sampling, room=max_new_tokens, by_layer=False,
    )  # fmt: skip


def _round_up(n: int) -> int:
    return -(-n // BUCKET) * BUCKET


def _by_layer(params: trees.Tree, device: jax.Device) -> trees.Tree:
    """The same memory, seen layer by layer: see `Layers`."""
    return {
        name: part
        if not isinstance(part, dict)
        else jax.device_put(Layers.of(jax.tree.map(np.asarray, part)), device)
        if re.fullmatch(STACKED, f"{name}/")
        else _by_layer(part, device)
        for name, part in params.items()
    }


def _program(params, tokens_BT, valid_BT, key, max_new, stop_ids, *, model, sampling, room, by_layer):
    """Left-padded prompts to int32[B, N, room], N answers to each, of which the first max_new tokens are asked for."""
    follow = functools.partial(scores.following, model, params)
    read_BT, real_BT = scores.read(model.config, tokens_BT, valid_BT)

    def rules(n, scores_MV, new_MR):
        beams = len(new_MR) // len(read_BT)
        return sampling.apply(
            n, scores_MV, new_MR, config=model.config, read_BT=jnp.repeat(read_BT, beams, axis=0),
            valid_BT=jnp.repeat(real_BT, beams, axis=0), max_new=max_new, stop_ids=stop_ids,
        )  # fmt: skip

    scores_BV, cache = scores.first(model, params, tokens_BT, valid_BT, room=room, by_layer=by_layer)
    how = {"follow": follow, "rules": rules, "room": room, "max_new": max_new, "stop_ids": stop_ids}
    if isinstance(sampling, Beam):
        return beam.search(sampling, scores_BV, cache, **how)[0]
    return _one_by_one(sampling, key, scores_BV, cache, **how)[:, None]


def _one_by_one(sampling, key, scores_BV, cache, *, follow, rules, room, max_new, stop_ids):
    """int32[B, room]: each token is chosen for good."""
    row_keys_B = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(scores_BV.shape[0]))

    def choose(n, scores_BV, new_BR):
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(row_keys_B, n)
        return sampling.choose(keys_B, rules(n, scores_BV, new_BR))

    def ended(token_B):
        return (token_B[:, None] == stop_ids).any(axis=1)

    def more(state):
        n, _, done_B, _, _ = state
        return (n < max_new) & ~done_B.all()

    def step(state):
        n, token_B, done_B, new_BR, cache = state
        scores_BV, cache = follow(token_B, cache)
        token_B = jnp.where(done_B, token_B, choose(n, scores_BV, new_BR))
        new_BR = jax.lax.dynamic_update_slice_in_dim(new_BR, token_B[:, None], n, axis=1)
        return n + 1, token_B, done_B | ended(token_B), new_BR, cache

    token_B = choose(0, scores_BV, jnp.zeros((scores_BV.shape[0], room), jnp.int32))
    new_BR = jnp.tile(token_B[:, None], (1, room))
    n, token_B, _, new_BR, _ = jax.lax.while_loop(more, step, (1, token_B, ended(token_B), new_BR, cache))
    # What was not reached repeats the token that ended the row.
    return jnp.where(jnp.arange(room) < n, new_BR, token_B[:, None])


_anywhere = jax.jit(_program, static_argnames=("model", "sampling", "room", "by_layer"))
# The product of a matrix and one token takes as long as to read the matrix, which wide registers read faster.
_on_cpu = jax.jit(
    _program,
    static_argnames=("model", "sampling", "room", "by_layer"),
    compiler_options={"xla_cpu_prefer_vector_width": 512},
)
