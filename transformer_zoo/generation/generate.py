"""`generate`: prefill, then decode with the cache, in one compiled program."""

import bisect
import contextlib
import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from transformer_zoo import arguments, registry, trees
from transformer_zoo.generation import constraint as constraints
from transformer_zoo.generation import forward, published, speculative
from transformer_zoo.generation.constraint import Constraint
from transformer_zoo.generation.sampling import TokenByToken
from transformer_zoo.generation.strategy import DecodeInputs, Strategy, log_probs_of
from transformer_zoo.generation.token_ids import KEYS, TokenIds
from transformer_zoo.nn import checks
from transformer_zoo.nn.cache import SPARE
from transformer_zoo.nn.quantized import has_quantized
from transformer_zoo.nn.stack import STACKED, Layers

BUCKET = 32  # the smallest bucket: see `bucket`
PROMPT_LOOKUP = "prompt-lookup"  # the draft that proposes what the prompt has
DRAFT_TOKENS = 4  # proposed at a time
DEFAULT_NEW_TOKENS = 128  # where neither the call nor the checkpoint has a number
# Arguments of other libraries, and ours.
RENAMED = {
    "attention_mask": "valid_BT", "input_ids": "prompts", "inputs": "prompts", "generation_config": "sampling",
    "decoder_input_ids": "prefix", "return_dict_in_generate": "output_scores", "assistant_model": "draft",
    "num_assistant_tokens": "draft_tokens", "prompt_lookup_num_tokens": 'draft="prompt-lookup" and draft_tokens',
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Generated:
    """What `generate` returns with `output_scores=True`, for B prompts, N answers to each and T new tokens."""

    answers: Any
    """What `generate` returns otherwise."""
    log_probs: np.ndarray
    """float[B, T], or [B, N, T] for several answers: the log probability that each new token was chosen by, under the
    rules and after all that excludes tokens; 0 behind the token that ends a row."""
    scores: np.ndarray
    """float[B] or [B, N]: the sum of a row's log probabilities; of a beam search over length ** length_penalty."""
    drafted: np.ndarray | None = None
    """int[B] or [B, N]: the number of tokens that a draft proposed. None: there was no draft."""
    accepted: np.ndarray | None = None
    """Likewise, of those among them that are in the answer."""


def generate(
    m: arguments.Loaded,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | np.ndarray | jax.Array,
    *,
    max_new_tokens: int | None = None,
    sampling: Annotated[Strategy, "Greedy(), Sample(temperature=, ...) or Beam(num_beams=, ...)"] | None = None,
    seed: int = 0,
    stop: int | str | Sequence[int | str] | None = None,
    valid_BT: Any = None,
    language: str | None = None,
    source_language: str | None = None,
    prefix: str | Sequence[str] | Sequence[Sequence[int]] | np.ndarray | None = None,
    output_scores: bool = False,
    prefill_chunk: int | None = None,
    draft: arguments.Loaded | str | None = None,
    draft_tokens: int | None = None,
    choices: Sequence[str] | None = None,
    pattern: str | None = None,
    schema: Mapping[str, Any] | str | None = None,
    **settings: Any,
) -> str | list[str] | list[list[str]] | np.ndarray | Generated:
    """Continues each prompt and returns the new tokens; an encoder-decoder reads the prompts as sources.

    A row's answer depends on its prompt, its index in the batch and the seed, and not on the other rows. What all
    prompts begin with is read once, and so is a prompt with several answers. A row ends with one of the checkpoint's
    end tokens (`m.token_ids`) or a stop token. The loop ends when all rows have ended.

    Args:
        m: a model with its parameters and tokenizer, as `from_pretrained` and `from_config` return them.
        prompts: a text or several, or token ids: [B, T], or B rows of unequal lengths. The tokenizer adds its special
            tokens, such as the end of a source, to text, and reads special tokens that the text spells out, such as
            T5's <extra_id_0>.
        max_new_tokens: the largest number of new tokens for a prompt. None: `sampling.max_new_tokens` or
            `sampling.max_length`, those of the checkpoint's generation_config.json, or else 128 with a warning; at
            most as many as the model has positions.
        sampling: the decoding strategy: `Greedy()`, `Sample(temperature=, top_k=, top_p=)` or `Beam(num_beams=,
            length_penalty=, ...)`, each with constraints (`LogitsRules`) such as `no_repeat_ngram_size=3`. None:
            `m.sampling`, the strategy of the checkpoint's generation_config.json, and greedy decoding if it has none.
        seed: of the random numbers; equal seeds give equal answers.
        stop: further token ids that end a row. With text prompts also texts: the answer is cut off before the first
            (and behind it by the setting `stop_strings`).
        valid_BT: for an array of ids, which are real; the others are padding, on either side.
        language: for a multilingual model, the code of the language to generate, such as "fr_XX".
        source_language: the code of the texts' language, where the tokenizer marks it.
        prefix: for an encoder-decoder, what the answers begin with, behind the decoder's start token: one text for all
            prompts, or a text or a row of token ids for each. The answers are what follows it, and no first token is
            forced.
        output_scores: also return log probabilities and scores, as `Generated`. It decodes the answers a second time.
        prefill_chunk: a decoder reads this many tokens of the prompts at a time: the scores of attention, [B, H, T, S]
            for prompts of T tokens, then take the memory of that many queries. None: the prompts as a whole.
        draft: proposes tokens, which the model reads at once and keeps where it would have chosen them (speculative
            decoding, for greedy decoding and sampling): a smaller model with the same tokenizer, or "prompt-lookup" for
            what followed in the prompt and the answer when they last had the same few tokens. The answers stay the
            same, but for logits that differ by rounding alone. It takes less time where several tokens are read as
            quickly as one: on accelerators, and hardly on a CPU. None: no proposals.
        draft_tokens: the number of tokens that are proposed at a time. None: 4.
        choices: each answer is one of these texts. A decoder's answer follows the prompt without a space: begin them
            with one where it is wanted.
        pattern: each answer as a whole matches this regular expression, in the syntax of `re` with the flag ASCII:
            characters, classes, groups, | and repetitions. Tokens are chosen such that the answer is complete after
            max_new_tokens at the latest. Beside it, and beside choices and schema, rules that may contradict it are
            refused: min_new_tokens, min_length, begin_suppressed, stop texts, and what forbids n-grams or more than
            single tokens; suppressed tokens are kept out of the answers.
        schema: each answer as a whole is JSON that this JSON schema (a dict, or its text) allows, complete after
            max_new_tokens at the latest: on one line, with at most one space behind a comma or a colon, the properties
            in the schema's order, those that are not required or not, and no others, as if additionalProperties were
            false. Supported are type, properties, required, additionalProperties (of an object without properties),
            items, prefixItems, minItems, maxItems, minLength, maxLength, pattern, format (date, time, date-time, uuid),
            minimum and maximum of integers, enum, const, anyOf, oneOf whose parts exclude one another, and $ref into
            the schema itself, but no recursion. Any other keyword is an error, but for descriptions. Integers have at
            most 15 digits.
        **settings: instead of `sampling`, single settings of the strategies, such as temperature=0.8, top_k=50,
            top_p=0.9 (sampling), num_beams=4, length_penalty=2.0, early_stopping=True (beam search),
            num_return_sequences=2 (both), no_repeat_ngram_size=3, min_new_tokens=5, max_length=20,
            repetition_penalty=1.2, bad_words_ids=[[7, 8]], stop_strings=["."], or do_sample=False. All others are those
            of `m.sampling` and of the checkpoint's generation_config.json. They mean what they mean in transformers:
            sampling without top_k is among the 50 most probable tokens, and top_k=0 among all. Unlike there, a
            temperature asks for sampling, and sampling replaces beam search. Also token ids in place of those of the
            checkpoint: eos_token_id=[2, 5], decoder_start_token_id, forced_bos_token_id (forced where the decoder has
            read a single token), forced_eos_token_id, bos_token_id; pad_token_id, which nothing here needs.

    Returns:
        For text the new text, without the token or text that ended it: a string for a string, a list for a list. For
        token ids int32[B, max_new_tokens], where a row that has ended repeats the token that ended it. If the strategy
        has num_return_sequences > 1, instead of each text a list of them, or int32[B, N, max_new_tokens]. With
        output_scores a `Generated`, which has these as `answers`.

    Raises:
        ValueError: an empty batch or prompt, ids outside of the vocabulary, more tokens than the model has positions,
            text without a tokenizer, a model without a language model's output, an unknown language, settings that
            contradict one another or are out of their range, a prefix for a decoder.
        TypeError: an argument of another type, an unknown one, or `sampling` together with single settings.
    """
    arguments.check(generate, locals())
    asked = request(
        m, prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop, valid_BT=valid_BT,
        language=language, source_language=source_language, prefix=prefix, prefill_chunk=prefill_chunk,
        draft=draft, draft_tokens=draft_tokens, choices=choices, pattern=pattern, schema=schema,
        settings=settings,
    )  # fmt: skip
    new_BNT, counts_BN, *drafts = run(asked)
    several = new_BNT.shape[1] > 1
    answers: Any = new_BNT if several else new_BNT[:, 0]
    if asked.is_text:
        texts = asked.texts(new_BNT, counts_BN)
        answers = texts if several else [answer for (answer,) in texts]
        answers = answers[0] if isinstance(prompts, str) else answers
    if not output_scores:
        return answers
    measures = (*_scores(asked, new_BNT, counts_BN), *drafts)
    return Generated(answers, *(x if several else x[:, 0] for x in measures))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """What is asked of a model, checked, before anything is computed; the fields are as in `generate`."""

    m: Any
    """With the token ids of this request."""
    rows: list[np.ndarray]
    """The token ids of each prompt or source."""
    is_text: bool
    """Whether text is asked for, and not token ids."""
    max_new: int
    sampling: Strategy
    seed: int
    stop_ids: list[int]
    """The ids that end a row."""
    stop_texts: list[str]
    """The texts that an answer is cut off before."""
    targets: list[np.ndarray] | None
    """The decoder's tokens before the new ones of an encoder-decoder. None: its start token."""
    prefill_chunk: int | None
    draft: Any
    """A `Bundle`, PROMPT_LOOKUP or None."""
    draft_tokens: int
    constraint: Constraint | None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The texts that an answer ends behind."""
        return getattr(self.sampling, "stop_strings", ())

    def text(self, row: int, new: np.ndarray, *, cut: bool = True) -> str:
        """The text of a row's new tokens; cut: off before the first of `stop_texts`."""
        return decode_text(self.m.tokenizer, new, self.stop_ids, self._before(row), self.stop_texts if cut else ())

    def texts(self, new_BNT: np.ndarray, counts_BN: np.ndarray) -> list[list[str]]:
        """The text of each answer, from the tokens that count."""
        return [
            [self.text(i, new[:count]) for new, count in zip(new_NT, counts_N)]
            for i, (new_NT, counts_N) in enumerate(zip(new_BNT, counts_BN))
        ]

    def count_until(self, row: int, new: np.ndarray) -> int:
        """The number of a row's new tokens up to the first one that completes one of `stop_strings`, which may begin in
        the prompt and be special tokens; one more than there are if none does."""
        vocab_size, decode = self.m.tokenizer.vocab_size, self.m.tokenizer.decode
        spell = lambda n: decode([i for i in (*self._before(row), *new[:n]) if i < vocab_size], special=True)
        read = len(spell(0))

        def has_text(n: int) -> bool:
            whole = spell(n)
            return any(text in whole[max(0, read - len(text) + 1) :] for text in self.stop_strings)

        return bisect.bisect_left(range(len(new) + 1), True, key=has_text)

    def _before(self, row: int) -> Sequence[int]:
        """The tokens that a row's new ones follow."""
        if not registry.is_encoder_decoder(self.m.model.config):
            return self.rows[row]
        return [] if self.targets is None else self.targets[row][1:]


def request(
    m: Any,
    prompts: Any,
    *,
    max_new_tokens: int | None,
    sampling: Strategy | None,
    seed: int,
    stop: Any,
    settings: dict[str, Any],
    rows: list[np.ndarray] | None = None,
    valid_BT: Any = None,
    language: str | None = None,
    source_language: str | None = None,
    prefix: Any = None,
    prefill_chunk: int | None = None,
    draft: Any = None,
    draft_tokens: int | None = None,
    choices: Sequence[str] | None = None,
    pattern: str | None = None,
    schema: Mapping[str, Any] | str | None = None,
) -> Request:
    """The request of the arguments of `generate`, whose errors it raises.

    Args:
        rows: the token ids of text prompts that are encoded already. None: they are not.
    """
    config = m.model.config
    is_encoder_decoder = registry.is_encoder_decoder(config)
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: ask for at least 1")
    if max_new_tokens is not None and settings.get("max_length") is not None:
        raise ValueError("max_new_tokens and max_length, which counts the prompt too: give one of them")
    _check_model(m.model)
    ids = {key: settings.pop(key) for key in KEYS if key in settings}
    if not is_encoder_decoder and ids.get("decoder_start_token_id") is not None:
        raise ValueError("decoder_start_token_id is what an encoder-decoder's answers start with: leave it out")
    m = dataclasses.replace(m, token_ids=TokenIds.read(ids, TokenIds.of_model(m))) if ids else m
    sampling, token_ids = _strategy(m, sampling, settings), TokenIds.of_model(m)
    sampling.check(config)
    stops = [stop] if isinstance(stop, (int, str)) else list(stop or ())
    stop_texts = [s for s in stops if isinstance(s, str)]
    if "" in stop_texts:
        raise ValueError("a text of stop is empty: it would end every answer at once")
    stop_ids = [s for s in stops if not isinstance(s, str)]
    if stop_ids:
        checks.check_ids(np.asarray(stop_ids)[None], config.vocab_size, "stop", "the vocabulary")
    # An end outside of the vocabulary is never generated.
    stop_ids = list(dict.fromkeys([*stop_ids, *(i for i in token_ids.eos if 0 <= i < config.vocab_size)]))
    if language is not None:
        token_ids, sampling, source_language = _in_language(m, sampling, language, source_language)
    elif is_encoder_decoder and token_ids.decoder_start is None:
        raise ValueError("the model's first token is that of a language: name one, such as language='fr_XX'")
    token_ids.check(config, *(name for name in ("bos", "eos") if f"{name}_token_id" in ids))

    texts = [prompts] if isinstance(prompts, str) else prompts
    if is_text := rows is not None or len(texts) > 0 and isinstance(texts[0], str):
        if valid_BT is not None:
            raise ValueError("valid_BT: it tells which token ids are real, and the prompts are texts: leave it out")
        rows = _encode(m, texts, source_language) if rows is None else rows
    else:
        rows = _rows(prompts, valid_BT)
        if stop_texts:
            raise ValueError(f"stop={stop_texts}: texts end text prompts only; for token ids, pass token ids")
        if source_language is not None:
            raise ValueError(
                f"the source names the language {source_language!r}: put its token among the token ids of the prompts"
            )
    targets = None
    if prefix is not None:
        first = [] if language is None or sampling.forced_first is None else [sampling.forced_first]
        targets = _targets(m, prefix, len(rows), [token_ids.decoder_start, *first])
        sampling = dataclasses.replace(sampling, forced_first=None)
    read = max(map(np.size, targets or ([[0]] if is_encoder_decoder else rows)), default=0)
    max_new_tokens = max_new_tokens or _default_length(m, sampling, read)
    _check_rows(rows, config, max_new_tokens, read)
    if prefill_chunk is not None:
        _check_chunk(prefill_chunk, config, max(map(len, rows)))
    if draft is not None or draft_tokens is not None:
        read_now = max(map(len, rows))
        needed = max(read_now, read - 1 + max_new_tokens) if is_encoder_decoder else read_now + max_new_tokens
        _check_draft(draft, draft_tokens, m, sampling, needed)

    if getattr(sampling, "stop_strings", ()) and m.tokenizer is None:
        raise ValueError(registry.no_tokenizer(m, f"Pass stop_strings=None in place of {[*sampling.stop_strings]}"))
    constraint, rules = None, vars(sampling) | {"stop": stop_texts}
    name, wanted = constraints.check(rules, choices=choices, pattern=pattern, schema=schema)
    if name:
        if sampling.forced_first is not None or is_encoder_decoder and token_ids.forced_bos is not None:
            raise ValueError(f"{name}: the model's first token is forced, and no text: leave it out")
        before = [[] for _ in rows] if is_encoder_decoder and targets is None else targets or rows
        forbidden = sampling.forbidden(token_ids)
        constraint = _constraint(m, name, wanted, forbidden, before, stop_ids, max_new_tokens)
        # Answers that are drawn token by token may be the same.
        differ = choices is not None and not isinstance(sampling, TokenByToken)
        if differ and sampling.num_return_sequences > len(set(choices)):
            raise ValueError(
                f"num_return_sequences={sampling.num_return_sequences} is more than there are choices: ask for fewer"
            )
    return Request(
        m=dataclasses.replace(m, token_ids=token_ids), rows=rows, is_text=is_text, max_new=max_new_tokens,
        sampling=sampling, seed=seed, stop_ids=stop_ids, stop_texts=stop_texts, targets=targets,
        prefill_chunk=prefill_chunk, draft=draft, draft_tokens=draft_tokens or DRAFT_TOKENS, constraint=constraint,
    )  # fmt: skip


def _strategy(m: Any, sampling: Any, settings: dict[str, Any]) -> Strategy:
    """The strategy that the arguments of `generate` ask for."""
    for name in settings.keys() & RENAMED:
        raise TypeError(f"generate has no argument {name!r}: pass {RENAMED[name]}")
    for name, neutral in published.UNSUPPORTED.items():
        if name in settings and settings[name] not in (None, neutral):
            raise ValueError(f"{name}={settings[name]!r} is not supported: leave it out")
    known = {"use_cache", *published.UNSUPPORTED}  # those of them that are left change nothing
    settings = {name: value for name, value in settings.items() if name not in known}
    if sampling is None:
        return published.build(m, settings) if settings else m.sampling
    if settings:
        raise TypeError(f"sampling and {', '.join(settings)}: put all settings into `sampling`, or leave it out")
    return sampling


def _default_length(m: Any, sampling: Strategy, read: int) -> int:
    """The number of new tokens where the call has none: the strategy's, the checkpoint's, or the default.

    Args:
        read: the largest number of the decoder's tokens before the new ones.
    """
    positions, is_encoder_decoder = m.model.config.max_length, registry.is_encoder_decoder(m.model.config)
    lengths = [strategy.length(read) for strategy in (sampling, m.sampling)]
    new = next((length for length in lengths if length is not None), None)
    if new is None:
        _warn_of_default()
        new = DEFAULT_NEW_TOKENS
    if new < 1:
        raise ValueError(f"a prompt has {read} tokens, and max_length leaves no room for more: pass max_new_tokens")
    if positions is not None:
        new = min(new, positions - read + is_encoder_decoder)
    return max(new, 1)


@functools.cache
def _warn_of_default() -> None:
    """Warns once in a process."""
    warnings.warn(
        f"neither the call nor the checkpoint has max_new_tokens: at most {DEFAULT_NEW_TOKENS} are generated",
        stacklevel=5,
    )


def _check_model(model: Any) -> None:
    task = registry.generating_task(model.config)
    if task is None:
        raise ValueError(f"{registry.family_of(model.config)} is an encoder and does not generate")
    if model.task != task:
        raise ValueError(f"a model for the task {model.task!r} does not generate: load it with task={task!r}")


def _in_language(
    m: Any, sampling: Strategy, code: str, source_code: str | None
) -> tuple[TokenIds, Strategy, str | None]:
    """The token ids, the strategy and the language of the source's template with which answers are in a language.

    The tokenizer's frame of a target shows where a model marks the language: with the first token (it is then forced),
    with the last token (the decoder then starts with it), or nowhere (the source's frame then has it).
    """
    if (tokenizer := m.tokenizer) is None:
        raise ValueError(f"language={code!r}: {registry.no_tokenizer(m)}")
    token, token_ids = tokenizer.language_id(code), TokenIds.of_model(m)
    frame = [int(i) for i in tokenizer.encode("", template=True, target=True, language=code).ids]
    if token not in frame:
        if source_code is not None:
            raise ValueError(
                f"source_language={source_code!r}: this model's sources are marked with the language of the answer, "
                "and not with their own: leave it out"
            )
        return token_ids, sampling, code
    if frame[0] == token:
        return token_ids, dataclasses.replace(sampling, forced_first=token), source_code
    return dataclasses.replace(token_ids, decoder_start=token), sampling, source_code


def _targets(m: Any, prefix: Any, count: int, start: list[int]) -> list[np.ndarray]:
    """The decoder's tokens before the new ones of each row: the start and the prefix. A start that all prefixes already
    have is not added a second time."""
    config = m.model.config
    if not registry.is_encoder_decoder(config):
        raise ValueError("prefix is what an encoder-decoder's answers begin with: of a decoder, the prompts")
    rows = [prefix] * count if isinstance(prefix, str) else list(prefix)
    if len(rows) != count:
        raise ValueError(f"there are {count} prompts and {len(rows)} prefixes: pass one for each")
    if any(isinstance(row, str) for row in rows):
        if m.tokenizer is None:
            raise ValueError(
                registry.no_tokenizer(
                    m, "Pass token ids instead of text, or put the tokenizer's files into the model's folder"
                )
            )
        rows = [encoding.ids for encoding in m.tokenizer.encode_batch(rows, special=True, target=True)]
    rows = [np.asarray(row, np.int32 if not len(row) else None) for row in rows]
    for i, row in enumerate(rows):
        if row.size:
            checks.check_ids(row[None], config.vocab_size, f"prefix {i}", "the vocabulary")
    given = next((n for n in range(len(start), 0, -1) if all(row[:n].tolist() == start[:n] for row in rows)), 0)
    return [np.asarray([*start, *row[given:]], np.int32) for row in rows]


def _check_rows(rows: list[np.ndarray], config: Any, max_new_tokens: int, read: int) -> None:
    if not rows:
        raise ValueError("the batch is empty: pass at least one prompt")
    for i, row in enumerate(rows):
        if row.ndim != 1:
            raise ValueError(f"prompt {i} is not a row of token ids: pass [B, T], or a list of rows")
        if not row.size:
            raise ValueError(f"prompt {i} is empty: there is nothing to continue")
        checks.check_ids(row[None], config.vocab_size, f"prompt {i}", "the vocabulary")
        # An encoder-decoder has `max_length` positions for each of source and target, whose last token takes none.
        is_encoder_decoder = registry.is_encoder_decoder(config)
        needed = max(len(row), read - 1 + max_new_tokens) if is_encoder_decoder else len(row) + max_new_tokens
        if config.max_length is not None and needed > config.max_length:
            prefix = f", the longest prefix {read - 1}" if is_encoder_decoder and read > 1 else ""
            raise ValueError(
                f"prompt {i} has {len(row)} tokens{prefix} and max_new_tokens is {max_new_tokens}, and the model has "
                f"{config.max_length} positions: shorten the prompt or ask for fewer tokens"
            )


def _check_chunk(chunk: int, config: Any, length: int) -> None:
    if chunk < 1:
        raise ValueError(f"prefill_chunk={chunk} must be a number of tokens, at least 1: None reads prompts as a whole")
    if registry.is_encoder_decoder(config):
        raise ValueError("prefill_chunk: an encoder-decoder's encoder reads a source as a whole: leave it out")
    if config.steady_length is not None and length > config.steady_length:
        raise ValueError(
            f"prefill_chunk: beyond {config.steady_length} tokens the rotary positions of this model depend on the "
            f"length of the prompt, which is {length}, so that it must be read as a whole: leave it out"
        )


def _check_draft(draft: Any, draft_tokens: int | None, m: Any, sampling: Strategy, needed: int) -> None:
    """Raises ValueError unless a draft can propose tokens.

    Args:
        needed: the positions that the longest row takes.
    """
    if draft is None:
        raise ValueError(f"draft_tokens={draft_tokens}: there is no draft to propose them: pass draft, or leave it out")
    if draft_tokens is not None and not 0 < draft_tokens < SPARE:
        raise ValueError(f"draft_tokens={draft_tokens} must be a number of tokens, from 1 to {SPARE - 1}")
    if not isinstance(sampling, TokenByToken):
        raise ValueError(f"draft: {type(sampling).__name__} is not decoded with proposals: leave it out, or num_beams")
    configs = [("model", m.model.config)]
    if isinstance(draft, str):
        if draft != PROMPT_LOOKUP:
            raise ValueError(f"draft={draft!r} is not known: pass a model, or {PROMPT_LOOKUP!r}")
    else:
        _check_model(draft.model)
        configs.append(("draft", draft.model.config))
        if registry.is_encoder_decoder(draft.model.config) != registry.is_encoder_decoder(m.model.config):
            raise ValueError("draft: one of the models is a decoder and the other an encoder-decoder: pass two alike")
        if draft.tokenizer is None or m.tokenizer is None:
            sizes = draft.model.config.vocab_size, m.model.config.vocab_size
        else:
            sizes = draft.tokenizer.vocab_size, m.tokenizer.vocab_size
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"draft has a vocabulary of {sizes[0]} tokens and the model one of {sizes[1]}: both must have the same "
                "tokenizer"
            )
    for name, config in configs:
        for most, what in ((config.max_length, "positions"), (config.steady_length, "positions of a steady rotation")):
            if most is not None and needed > most:
                raise ValueError(
                    f"draft: {needed} tokens are asked for, prompt included, and the {name} has {most} {what}: "
                    "leave it out, or ask for fewer"
                )


def _constraint(
    m: Any,
    name: str,
    wanted: Any,
    forbidden: Sequence[tuple[int, ...]],
    before: Sequence[Any],
    stop_ids: list[int],
    max_new_tokens: int,
) -> Constraint:
    """That all answers are among the choices, match the pattern, or are JSON of the schema.

    Args:
        name, wanted: as of `constraint.check`.
        forbidden: the sequences of tokens that are never generated.
        before: the tokens that each answer follows.
    """
    if longer := [words for words in forbidden if len(words) > 1]:
        raise ValueError(
            f"the tokens {[*longer[0]]} are forbidden one after another (bad_words or sequence_bias), and {name} may "
            "need them: forbid single tokens alone"
        )
    if (tokenizer := m.tokenizer) is None:
        raise ValueError(registry.no_tokenizer(m, f"Leave out {name}"))
    if not stop_ids:
        raise ValueError(f"{name}: no token ends an answer: pass stop=, the id of one")
    never = dict.fromkeys(i for (i,) in forbidden)
    if never.keys() >= {*stop_ids}:
        raise ValueError(f"{name}: the tokens that end an answer, {stop_ids}, are forbidden: allow one of them")
    excluded = tuple(dict.fromkeys([*stop_ids, *never]))
    after_NV, distance_N = constraints.tables(wanted, tokenizer, m.model.config.vocab_size, excluded)
    decode = lambda row: tokenizer.decode([i for i in row if i < tokenizer.vocab_size])
    start_B = np.array([0 if decode(row) else 1 for row in before], np.int32)
    if (least := distance_N[start_B].max()) > max_new_tokens:
        needed = "no tokens of this model match" if least == constraints.FAR else f"the shortest has {least} tokens"
        raise ValueError(f"{name}: an answer cannot have at most max_new_tokens={max_new_tokens}: {needed}")
    return Constraint(after_NV=after_NV, distance_N=distance_N, start_B=start_B)


def _rows(prompts: Any, valid_BT: Any) -> list[np.ndarray]:
    """The real tokens of each prompt."""
    rows = [np.asarray(row) for row in prompts]
    if valid_BT is None:
        return rows
    checks.check_like(valid_BT, prompts, "valid_BT")
    return [row[keep] for row, keep in zip(rows, np.asarray(valid_BT, bool))]


def _encode(m: Any, texts: Sequence[str], language: str | None) -> list[np.ndarray]:
    """Texts as rows of token ids, in the tokenizer's frame where one is known. An empty prompt is what the frame puts
    in front, or else the token that starts a text, if there is one."""
    if (tokenizer := m.tokenizer) is None:
        raise ValueError(
            registry.no_tokenizer(
                m, "Pass token ids instead of text, or put the tokenizer's files into the model's folder"
            )
        )
    if registry.is_encoder_decoder(m.model.config):
        encodings = tokenizer.encode_batch(texts, template=True, language=language)
        return [encoding.ids for encoding in encodings]
    if language is not None:
        raise ValueError(f"source_language={language!r}: a decoder has no source: leave it out")
    first, starts = tokenizer.before_text, (TokenIds.of_model(m).bos, tokenizer.bos_id)
    start = first if len(first) else [token for token in starts if token is not None][:1]
    encodings = tokenizer.encode_batch(texts, template=tokenizer.has_template)
    return [encoding.ids if text else np.asarray(start, np.int32) for text, encoding in zip(texts, encodings)]


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


def run(asked: Request) -> tuple[np.ndarray, ...]:
    """int32[B, N, max_new]: N answers to each prompt; int[B, N]: the number of tokens of each up to one of
    `stop_strings`, behind which the last token is repeated; and, with a draft, how many tokens of each were proposed
    and accepted."""
    new_BNT, *drafts = (_run(asked),) if asked.draft is None else _speculate(asked)
    counts_BN = np.full(new_BNT.shape[:2], new_BNT.shape[2])
    if asked.stop_strings:
        new_BNT = new_BNT.copy()
        for i, j in np.ndindex(*counts_BN.shape):
            count = counts_BN[i, j] = min(asked.count_until(i, new_BNT[i, j]), new_BNT.shape[2])
            new_BNT[i, j, count:] = new_BNT[i, j, count - 1]
    return new_BNT, counts_BN, *drafts


def _run(asked: Request) -> np.ndarray:
    """int32[B, N, max_new], by a program for lengths that are rounded up."""
    arguments, static, device = _prepared(asked)
    with device():
        new_BNR = _compiled[static["by_layer"]](*arguments, **static)
    return np.asarray(new_BNR)[..., : asked.max_new]


def _speculate(asked: Request) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_run`, with a draft; and the numbers of tokens that it proposed and that were accepted, int[B, N]."""
    arguments, static, device = _prepared(asked)
    draft_model = draft_params = None
    if asked.draft != PROMPT_LOOKUP:
        draft_model, draft_params = asked.draft.model, _placed(asked.draft.params, static["by_layer"])[0]
    with device():
        new_BNR, *drafts = _compiled_speculative[static["by_layer"]](
            *arguments, draft_model=draft_model, draft_params=draft_params, draft_tokens=asked.draft_tokens, **static
        )
    return np.asarray(new_BNR)[..., : asked.max_new], *map(np.asarray, drafts)


def steps(asked: Request, chunk: int) -> Iterator[tuple[np.ndarray, bool]]:
    """The new tokens of a single row so far, int32[n], each time that there are some more; and whether these are all.

    They are the tokens of `generate`. Two programs compute them, one that reads the prompt and one that decodes the
    next few tokens; the second is the same for all of a stream.

    Args:
        chunk: the number of tokens that are decoded at a time.
    """
    arguments, static, device = _prepared(asked)
    with device():
        state = _compiled_begin[static["by_layer"]](*arguments, **static)
    while True:
        n, new_R = int(state.n), np.array(state.new_BR[0])  # a copy: the state is given away below
        done = n >= asked.max_new or bool(state.done_B[0])
        yield new_R[:n], done
        if done:
            return
        until = np.int32(min(n + chunk, asked.max_new))
        with device():
            state = _compiled_advance[static["by_layer"]](state, until, *arguments, **static)


def _scores(asked: Request, new_BNT: np.ndarray, counts_BN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float[B, N, T], float[B, N]: log probabilities of new tokens, 0 behind the first counts_BN of them, and scores of
    the answers."""
    T = new_BNT.shape[-1]
    arguments, static, device = _prepared(dataclasses.replace(asked, max_new=T, seed=0))
    new_BNR = np.pad(new_BNT, ((0, 0), (0, 0), (0, static["room"] - T)), mode="edge")
    with device():
        log_prob_BNT = np.asarray(_compiled_scores(new_BNR, *arguments, **static))[..., :T]
        log_prob_BNT = np.where(np.arange(T) < counts_BN[..., None], log_prob_BNT, 0)
        ended_BNT = np.isin(new_BNT, asked.stop_ids)
        length_BN = np.where(ended_BNT.any(axis=-1), ended_BNT.argmax(axis=-1) + 1, T)
        return log_prob_BNT, np.asarray(asked.sampling.score(log_prob_BNT.sum(axis=-1), length_BN))


def _prepared(
    asked: Request,
) -> tuple[tuple[Any, ...], dict[str, Any], Callable[[], contextlib.AbstractContextManager[Any]]]:
    """The arguments of a program, those by name, static ones and the constraint, and the context in which it runs."""
    m, rows, targets, sampling = asked.m, asked.rows, asked.targets, asked.sampling
    config = m.model.config
    source, target, positions = max(map(len, rows)), max(map(len, targets or [[0]])), config.max_length
    room, S = bucket(asked.max_new, positions), bucket(source, positions)
    T = 1 if targets is None else bucket(target, positions)
    chunk, shared = asked.prefill_chunk, 0 if registry.is_encoder_decoder(config) else _shared(rows, config)
    if shared:
        shared -= 0 if chunk is None or chunk > shared else shared % chunk
        S = bucket(source - shared, positions)
    S += shared - (S % -chunk if chunk is not None and chunk < S else 0)
    drafts = asked.draft not in (None, PROMPT_LOOKUP) and has_quantized(asked.draft.params)
    params, by_layer, context = _placed(m.params, False if drafts else None)
    # Strategies that differ in these alone share a program.
    outside = {"max_new_tokens": None, "max_length": None, "stop_strings": ()}
    sampling = dataclasses.replace(sampling, **{name: x for name, x in outside.items() if hasattr(sampling, name)})
    arguments = (
        params, *_padded(rows, S), jax.random.key(asked.seed),
        np.int32(asked.max_new), np.asarray(asked.stop_ids, np.int32),
        *(() if targets is None else _padded(targets, T)),
    )  # fmt: skip
    static = {
        "model": m.model, "sampling": sampling, "token_ids": TokenIds.of_model(m), "room": room, "by_layer": by_layer,
        "chunk": chunk, "shared": shared, "constraint": asked.constraint,
    }  # fmt: skip
    return arguments, static, context


def _placed(
    params: trees.Tree, by_layer: bool | None = None
) -> tuple[trees.Tree, bool, Callable[[], contextlib.AbstractContextManager[Any]]]:
    """Parameters as a program takes them, whether that is by layer, and the context in which it runs.

    Args:
        by_layer: None: on a CPU, except that quantised ones are expanded in turn in a scan alone.
    """
    params = jax.tree.map(jnp.asarray, params)
    sharding = jax.tree.leaves(params)[0].sharding
    device, *others = sharding.device_set
    if others:
        return params, False, functools.partial(jax.set_mesh, sharding.mesh)
    if by_layer is None:
        by_layer = device.platform == "cpu" and not has_quantized(params)
    context = functools.partial(jax.default_device, device)
    return _by_layer(params, device) if by_layer else params, by_layer, context


def _shared(rows: list[np.ndarray], config: Any) -> int:
    """The number of first tokens that are the same in several prompts, rounded down to a bucket; 0 if it is smaller."""
    least, most = min(map(len, rows)) - 1, max(map(len, rows))
    if len(rows) == 1 or least < BUCKET or config.steady_length is not None and most > config.steady_length:
        return 0
    differ = (np.stack([row[:least] for row in rows]) != rows[0][:least]).any(axis=0)
    common = int(differ.argmax()) if differ.any() else least
    return BUCKET << ((common // BUCKET).bit_length() - 1) if common >= BUCKET else 0


def _padded(rows: list[np.ndarray], T: int) -> tuple[np.ndarray, np.ndarray]:
    """int32[B, T] with padding on the left, and which tokens are real."""
    tokens_BT, valid_BT = np.zeros((len(rows), T), np.int32), np.zeros((len(rows), T), bool)
    for i, row in enumerate(rows):
        tokens_BT[i, T - len(row) :], valid_BT[i, T - len(row) :] = row, True
    return tokens_BT, valid_BT


def lower(
    model: Any, params: trees.Tree, tokens_BT: Any, valid_BT: Any, *, max_new_tokens: int, sampling: Strategy
) -> Any:
    """The program of `generate` on an accelerator, lowered for arguments of known shapes and shardings."""
    _check_model(model)
    token_ids = TokenIds.of_config(model.config)
    return _compiled[False].lower(
        params, tokens_BT, valid_BT, jax.eval_shape(jax.random.key, 0), np.int32(max_new_tokens),
        np.asarray(token_ids.eos, np.int32),
        model=model, sampling=sampling, token_ids=token_ids, room=max_new_tokens, by_layer=False,
    )  # fmt: skip


def bucket(n: int, most: int | None = None) -> int:
    """The smallest of BUCKET, 2 BUCKET, 4 BUCKET, ... and `most` that is not smaller. Prompts are padded to it, and the
    slots for new tokens likewise, so that a program is compiled for a pair of buckets and not for each length."""
    size = BUCKET << (-(-n // BUCKET) - 1).bit_length()
    return size if most is None else min(size, most)


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


def _inputs(
    params, tokens_BT, valid_BT, key, max_new, stop_ids, target_BP=None, target_valid_BP=None,
    *, model, sampling, token_ids, room, by_layer, chunk=None, shared=0, constraint=None, spare=0, read=True,
):  # fmt: skip
    """The state after the left-padded prompts were read, or the sources and the left-padded beginnings of targets.
    Unless they are `read`, only the functions that continue it."""
    prompt_BP, real_BP = (
        forward.decoder_prompt(model.config, token_ids, tokens_BT, valid_BT)
        if target_BP is None
        else (target_BP, target_valid_BP)
    )

    def apply_rules(n, logits_MV, new_MR):
        of_each = lambda x: jnp.repeat(x, len(new_MR) // len(prompt_BP), axis=0)
        ruled_MV = sampling.apply(
            n, logits_MV, new_MR, token_ids=token_ids, prompt_BT=of_each(prompt_BP), valid_BT=of_each(real_BP),
            source_BS=of_each(tokens_BT), valid_BS=of_each(valid_BT), max_new=max_new, stop_ids=stop_ids,
        )  # fmt: skip
        if constraint is None:
            return ruled_MV
        return constraint.apply(n, ruled_MV, new_MR, otherwise_MV=logits_MV, max_new=max_new, stop_ids=stop_ids)

    logits_BV = cache = None
    if read:
        logits_BV, cache = forward.prefill(
            model,
            params,
            tokens_BT,
            valid_BT,
            prompt_BP,
            real_BP,
            room=room + spare,
            by_layer=by_layer,
            chunk=chunk,
            shared=shared,
        )
    return DecodeInputs(
        logits_BV=logits_BV, cache=cache, decode_step=functools.partial(forward.decode_step, model, params),
        apply_rules=apply_rules, key=key, room=room, max_new=max_new, stop_ids=stop_ids,
    )  # fmt: skip


def _program(*arguments, sampling, **static):
    """int32[B, N, room]: N answers to each prompt, of which the first max_new tokens count."""
    return sampling.decode(_inputs(*arguments, sampling=sampling, **static))


def _speculative_program(*arguments, sampling, model, draft_model, draft_params, draft_tokens, **static):
    """As `_program`, with proposals; and how many there were and were accepted, int32[B, N]."""
    reader = lambda model, params: functools.partial(forward.read, model, params)
    static |= {"sampling": sampling, "spare": draft_tokens}
    inputs = _inputs(*arguments, model=model, **static)
    params, tokens_BT, valid_BT, *rest = arguments
    if draft_model is None:
        draft = speculative.by_lookup(tokens_BT, valid_BT, draft_tokens)
    else:
        size = draft_model.config.vocab_size
        known, targets = jnp.minimum(tokens_BT, size - 1), rest[3:]
        if not targets:
            targets = forward.decoder_prompt(model.config, static["token_ids"], known, valid_BT)
        arguments = (draft_params, known, valid_BT, *rest[:3], jnp.minimum(targets[0], size - 1), targets[1])
        cache = _inputs(*arguments, model=draft_model, **static).cache
        draft = speculative.by_model(sampling, inputs, reader(draft_model, draft_params), size, draft_tokens, cache)
    return speculative.decode(sampling, inputs, reader(model, params), draft)


def _begin_program(*arguments, sampling, **static):
    """The state with the first new token."""
    return sampling.begin(_inputs(*arguments, sampling=sampling, **static))


def _advance_program(state, until, *arguments, sampling, **static):
    """The state with `until` new tokens, or those up to the end."""
    return sampling.advance(_inputs(*arguments, sampling=sampling, read=False, **static), state, until)


def _scoring_program(new_BNR, *arguments, sampling, **static):
    """float[B, N, room]: the log probabilities of the tokens that `_program` returns."""
    return log_probs_of(sampling, _inputs(*arguments, sampling=sampling, **static), new_BNR)


def _compilers(program: Callable[..., Any], **options: Any) -> dict[bool, Any]:
    """The compiled program, by whether it decodes layer by layer on a CPU. There, the product of a matrix and one token
    is bound by reading the matrix, which wide registers read faster."""
    wide = {"xla_cpu_prefer_vector_width": 512}
    compile = functools.partial(jax.jit, program, static_argnames=_STATIC, **options)
    return {False: compile(), True: compile(compiler_options=wide)}


_STATIC = ("model", "sampling", "token_ids", "room", "by_layer", "chunk", "shared", "draft_model", "draft_tokens")
_compiled, _compiled_begin = _compilers(_program), _compilers(_begin_program)
_compiled_advance = _compilers(_advance_program, donate_argnums=0)
_compiled_speculative = _compilers(_speculative_program)
_compiled_scores = jax.jit(_scoring_program, static_argnames=_STATIC)
