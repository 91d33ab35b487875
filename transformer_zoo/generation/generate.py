"""`generate`: prefill, then decode with the cache, in one compiled program."""

import dataclasses
import functools
import re
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import registry, trees
from transformer_zoo.generation import forward, strategies
from transformer_zoo.generation.strategy import DecodeInputs, Strategy
from transformer_zoo.nn import checks
from transformer_zoo.nn.stack import STACKED, Layers

BUCKET = 32  # lengths of prompts and answers are rounded up to multiples of it, so that few programs are compiled
DEFAULT_NEW_TOKENS = 128  # where neither the call nor the checkpoint has a number
# Arguments of other libraries, and ours.
RENAMED = {
    "attention_mask": "valid_BT", "input_ids": "prompts", "inputs": "prompts", "generation_config": "sampling",
    "stop_strings": "stop", "eos_token_id": "stop", "max_length": "max_new_tokens, which excludes the prompt",
    "min_length": "min_new_tokens", "bad_words_ids": "suppressed",
}  # fmt: skip


def generate(
    m: Any,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | np.ndarray | jax.Array,
    *,
    max_new_tokens: int | None = None,
    sampling: Strategy | None = None,
    seed: int = 0,
    stop: int | str | Sequence[int | str] | None = None,
    valid_BT: Any = None,
    language: str | None = None,
    source_language: str | None = None,
    **settings: Any,
) -> str | list[str] | list[list[str]] | np.ndarray:
    """Continues each prompt and returns the new tokens; an encoder-decoder reads the prompts as sources.

    A row's answer depends on its prompt, its index in the batch and the seed, and not on the other rows. A row ends
    with the model's `eos_id` or a stop token. The loop ends when all rows have ended.

    Args:
        m: a model with its parameters and tokenizer, as `from_pretrained` and `from_config` return them.
        prompts: a text or several, or token ids: [B, T], or B rows of unequal lengths. An encoder-decoder's tokenizer
            adds its special tokens, such as the end of a source, to text, and reads special tokens that the text
            spells out, such as T5's <extra_id_0>.
        max_new_tokens: the largest number of new tokens for a prompt. None: `sampling.max_new_tokens` or
            `sampling.max_length`, those of the checkpoint's generation_config.json, or else 128 with a warning; at
            most as many as the model has positions.
        sampling: the decoding strategy: `Greedy()`, `Sample(temperature=, top_k=, top_p=)` or `Beam(num_beams=,
            length_penalty=, ...)`, each with constraints (`LogitsRules`) such as `no_repeat_ngram_size=3`. None:
            `m.sampling`, the strategy of the checkpoint's generation_config.json, and greedy decoding if it has none.
        seed: of the random numbers; equal seeds give equal answers.
        stop: further token ids that end a row. With text prompts also texts: the answer is cut off before the first.
        valid_BT: for an array of ids, which are real; the others are padding, on either side.
        language: for a multilingual model, the code of the language to generate, such as "fr_XX".
        source_language: the code of the texts' language, where the tokenizer marks it.
        **settings: instead of `sampling`, single settings of the strategies, such as temperature=0.8, top_k=50,
            top_p=0.9 (sampling), num_beams=4, length_penalty=2.0, early_stopping=True, num_return_sequences=2 (beam
            search), no_repeat_ngram_size=3, min_new_tokens=5, repetition_penalty=1.2, or do_sample=False. All others
            are those of `m.sampling`, as in `strategies.build`.

    Returns:
        For text the new text, without the token or text that ended it: a string for a string, a list for a list. For
        token ids int32[B, max_new_tokens], where a row that has ended repeats the token that ended it. If the strategy
        has num_return_sequences > 1, instead of each text a list of them, or int32[B, N, max_new_tokens].

    Raises:
        ValueError: an empty batch or prompt, ids outside of the vocabulary, more tokens than the model has positions,
            text without a tokenizer, a model without a language model's output, an unknown language, settings that
            contradict one another or are out of their range.
        TypeError: an unknown argument, or `sampling` together with single settings.
    """
    config = m.model.config
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: ask for at least 1")
    _check_model(m.model)
    sampling = _strategy(m, sampling, settings)
    sampling.check(config)
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
        raise ValueError("the model's first token is that of a language: name one, such as language='fr_XX'")

    texts = [prompts] if isinstance(prompts, str) else prompts
    if is_text := len(texts) > 0 and isinstance(texts[0], str):
        rows = _encode(m, texts, source_language)
    else:
        rows = _rows(prompts, valid_BT)
        if stop_texts:
            raise ValueError(f"stop={stop_texts}: texts end text prompts only; for token ids, pass token ids")
        if source_language is not None:
            raise ValueError(
                f"the source names the language {source_language!r}: put its token among the token ids of the prompts"
            )
    max_new_tokens = max_new_tokens or _default_length(m, sampling, rows)
    _check_rows(rows, config, max_new_tokens)

    new_BNT = _run(m, rows, max_new_tokens, sampling, seed, stop_ids)
    several = new_BNT.shape[1] > 1
    if not is_text:
        return new_BNT if several else new_BNT[:, 0]
    befores = [[]] * len(rows) if registry.is_encoder_decoder(config) else rows
    answers = [
        [decode_text(m.tokenizer, new, stop_ids, before, stop_texts) for new in new_NT]
        for before, new_NT in zip(befores, new_BNT)
    ]
    answers = answers if several else [answer for (answer,) in answers]
    return answers[0] if isinstance(prompts, str) else answers


def _strategy(m: Any, sampling: Any, settings: dict[str, Any]) -> Strategy:
    """The strategy that the arguments of `generate` ask for."""
    for name in settings.keys() & RENAMED:
        raise TypeError(f"generate has no argument {name!r}: pass {RENAMED[name]}")
    if sampling is None:
        return strategies.build(settings, m.sampling) if settings else m.sampling
    if settings:
        raise TypeError(f"sampling and {', '.join(settings)}: put all settings into `sampling`, or leave it out")
    if not isinstance(sampling, Strategy):
        raise TypeError(f"sampling={sampling!r}: pass Greedy(), Sample(temperature=, ...) or Beam(num_beams=, ...)")
    return sampling


def _default_length(m: Any, sampling: Strategy, rows: list[np.ndarray]) -> int:
    """The number of new tokens where the call has none: the strategy's, the checkpoint's, or the default."""
    longest, positions = max((row.size for row in rows), default=0), m.model.config.max_length
    is_encoder_decoder = registry.is_encoder_decoder(m.model.config)
    lengths = [strategy.length(1 if is_encoder_decoder else longest) for strategy in (sampling, m.sampling)]
    new = next((length for length in lengths if length is not None), None)
    if new is None:
        _warn_of_default()
        new = DEFAULT_NEW_TOKENS
    if new < 1:
        raise ValueError(f"a prompt has {longest} tokens, and max_length leaves no room for more: pass max_new_tokens")
    if positions is not None:
        new = min(new, positions if is_encoder_decoder else positions - longest)
    return max(new, 1)


@functools.cache
def _warn_of_default() -> None:
    """Warns once in a process."""
    warnings.warn(
        f"neither the call nor the checkpoint has max_new_tokens: at most {DEFAULT_NEW_TOKENS} are generated",
        stacklevel=4,
    )


def _check_model(model: Any) -> None:
    task = registry.generating_task(model.config)
    if task is None:
        raise ValueError(f"{registry.family_of(model.config)} is an encoder and does not generate")
    if model.task != task:
        raise ValueError(f"a model for the task {model.task!r} does not generate: load it with task={task!r}")


def _in_language(m: Any, sampling: Strategy, code: str, source_code: str | None) -> tuple[Any, Strategy, str | None]:
    """The model, the strategy and the language of the source's template with which answers are in a language.

    The tokenizer's frame of a target shows where a model marks the language: with the first token (it is then forced),
    with the last token (the decoder then starts with it), or nowhere (the source's frame then has it).
    """
    if (tokenizer := m.tokenizer) is None:
        raise ValueError(f"language={code!r}: the model has no tokenizer, which knows the languages")
    token = tokenizer.language_id(code)
    frame = [int(i) for i in tokenizer.encode("", template=True, target=True, language=code).ids]
    if token not in frame:
        if source_code is not None:
            raise ValueError(
                f"source_language={source_code!r}: this model's sources are marked with the language of the answer, "
                "and not with their own: leave it out"
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
        # An encoder-decoder has `max_length` positions for each of source and target.
        is_encoder_decoder = registry.is_encoder_decoder(config)
        needed = max(len(row), max_new_tokens) if is_encoder_decoder else len(row) + max_new_tokens
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
    """Texts as rows of token ids: sources in the tokenizer's frame; prompts behind what the frame puts in front, but
    without what would end them. An empty prompt is the token that starts a text, if the tokenizer has one."""
    if (tokenizer := m.tokenizer) is None:
        raise ValueError("the model has no tokenizer: pass token ids instead of text")
    if registry.is_encoder_decoder(m.model.config):
        encodings = tokenizer.encode_batch(texts, template=True, language=language)
        return [encoding.ids for encoding in encodings]
    if language is not None:
        raise ValueError(f"source_language={language!r}: a decoder has no source: leave it out")
    first = tokenizer.before_text
    start = first if len(first) or tokenizer.bos_id is None else [tokenizer.bos_id]
    return [np.asarray([*first, *tokenizer.encode(text).ids] if text else start, np.int32) for text in texts]


def decode_text(
    tokenizer: Any,
    new: np.ndarray,
    stop_ids: Sequence[int],
    before: Sequence[int] = (),
    stop_texts: Sequence[str] = (),
) -> str:
    """The text of new tokens: of all tokens, less the text of the prompt, since a token's text may depend on it.

    Args:
        new: token ids. Those that the tokenizer lacks have no text: T5's embedding has 28 more rows than its tokenizer.
        stop_ids: the text ends before the first of these.
        before: the prompt.
        stop_texts: likewise.
    """
    ends = np.flatnonzero(np.isin(new, stop_ids))
    new = new[: ends[0]] if ends.size else new
    new = new[new < tokenizer.vocab_size]
    whole, prompt = tokenizer.decode([*before, *new]), tokenizer.decode(before)
    text = whole[len(prompt) :] if whole.startswith(prompt) else tokenizer.decode(new)
    return text[: min((at for stop in stop_texts if (at := text.find(stop)) >= 0), default=len(text))]


def _run(
    m: Any, rows: list[np.ndarray], max_new: int, sampling: Strategy, seed: int, stop_ids: list[int]
) -> np.ndarray:
    """int32[B, N, max_new]: N answers to each prompt, by a program for lengths that are rounded up."""
    longest, positions = max(map(len, rows)), m.model.config.max_length
    room, T = _round_up(max_new), _round_up(longest)
    if positions is not None:
        is_encoder_decoder = registry.is_encoder_decoder(m.model.config)
        room = min(room, positions if is_encoder_decoder else positions - longest)
        T = min(T, positions if is_encoder_decoder else positions - room)
    tokens_BT, valid_BT = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
    for i, row in enumerate(rows):
        tokens_BT[i, T - len(row) :], valid_BT[i, T - len(row) :] = row, True
    params = jax.tree.map(jnp.asarray, m.params)
    sharding = jax.tree.leaves(params)[0].sharding
    device, *others = sharding.device_set
    by_layer = not others and device.platform == "cpu"
    # The lengths are an argument: strategies that differ in them alone share a program.
    sampling = dataclasses.replace(sampling, max_new_tokens=None, max_length=None)
    with jax.set_mesh(sharding.mesh) if others else jax.default_device(device):
        new_BNR = (_compiled_on_cpu if by_layer else _compiled)(
            _by_layer(params, device) if by_layer else params, tokens_BT, valid_BT, jax.random.key(seed),
            np.int32(max_new), np.asarray(stop_ids, np.int32),
            model=m.model, sampling=sampling, room=room, by_layer=by_layer,
        )  # fmt: skip
    return np.asarray(new_BNR)[..., :max_new]


def lower(
    model: Any, params: trees.Tree, tokens_BT: Any, valid_BT: Any, *, max_new_tokens: int, sampling: Strategy
) -> Any:
    """The program of `generate` on an accelerator, lowered for arguments of known shapes and shardings."""
    _check_model(model)
    stop_ids = [] if model.config.eos_id is None else [model.config.eos_id]
    return _compiled.lower(
        params, tokens_BT, valid_BT, jax.eval_shape(jax.random.key, 0), np.int32(max_new_tokens),
        np.asarray(stop_ids, np.int32), model=model, sampling=sampling, room=max_new_tokens, by_layer=False,
    )  # fmt: skip


def _round_up(n: int) -> int:
    return -(-n // BUCKET) * BUCKET


def _by_layer(params: trees.Tree, device: jax.Device) -> trees.Tree:
    """Views of the parameters, one for each layer: see `Layers`."""
    return {
        name: part
        if not isinstance(part, dict)
        else jax.device_put(Layers.of(jax.tree.map(np.asarray, part)), device)
        if re.fullmatch(STACKED, f"{name}/")
        else _by_layer(part, device)
        for name, part in params.items()
    }


def _program(params, tokens_BT, valid_BT, key, max_new, stop_ids, *, model, sampling, room, by_layer):
    """Left-padded prompts to int32[B, N, room]: N answers to each, of which the first max_new tokens count."""
    prompt_BT, real_BT = forward.decoder_prompt(model.config, tokens_BT, valid_BT)

    def apply_rules(n, logits_MV, new_MR):
        rows_of_each = len(new_MR) // len(prompt_BT)
        return sampling.apply(
            n, logits_MV, new_MR, config=model.config, prompt_BT=jnp.repeat(prompt_BT, rows_of_each, axis=0),
            valid_BT=jnp.repeat(real_BT, rows_of_each, axis=0), max_new=max_new, stop_ids=stop_ids,
        )  # fmt: skip

    logits_BV, cache = forward.prefill(model, params, tokens_BT, valid_BT, room=room, by_layer=by_layer)
    return sampling.decode(
        DecodeInputs(
            logits_BV=logits_BV, cache=cache, decode_step=functools.partial(forward.decode_step, model, params),
            apply_rules=apply_rules, key=key, room=room, max_new=max_new, stop_ids=stop_ids,
        )
    )  # fmt: skip


_compiled = jax.jit(_program, static_argnames=("model", "sampling", "room", "by_layer"))
# The product of a matrix and one token is bound by reading the matrix, which wide registers read faster.
_compiled_on_cpu = jax.jit(
    _program,
    static_argnames=("model", "sampling", "room", "by_layer"),
    compiler_options={"xla_cpu_prefer_vector_width": 512},
)
