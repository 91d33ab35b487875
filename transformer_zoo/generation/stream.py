"""`stream`, text as it is generated, and `chat`, the answer to a conversation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from transformer_zoo import arguments, registry
from transformer_zoo.generation.generate import Request, request, run, steps
from transformer_zoo.generation.sampling import TokenByToken
from transformer_zoo.generation.strategy import Strategy

CHUNK = 4
"""Tokens that are decoded at a time."""
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer writes for the bytes of a character that is not whole yet."""

Messages = Annotated[Sequence[Mapping[str, Any]], 'messages such as [{"role": "user", "content": "Hello"}]']
AnyStrategy = Annotated[Strategy, "Greedy() or Sample(temperature=, ...)"]


def stream(
    m: arguments.Loaded,
    prompt: str | Messages,
    *,
    max_new_tokens: int | None = None,
    sampling: AnyStrategy | None = None,
    seed: int = 0,
    stop: int | str | Sequence[int | str] | None = None,
    language: str | None = None,
    source_language: str | None = None,
    prefix: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    choices: Sequence[str] | None = None,
    pattern: str | None = None,
    schema: Mapping[str, Any] | str | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Continues a prompt, or answers a conversation, piece by piece: `print(piece, end="", flush=True)`.

    The pieces together are the text of `generate`, or of `chat`, with the same arguments. Each is of whole characters,
    and what may begin a text of `stop` is held back until it is known. The model computes a few tokens when a piece is
    asked for, so that an iterator that is left costs nothing more.

    Args:
        m: a model with its parameters and tokenizer.
        prompt: a text to continue, or for an encoder-decoder to read; or messages, as of `chat`.
        tools, variables: as of `chat`, for messages.

    All other arguments are as of `generate`.

    Returns:
        An iterator of texts that are not empty.

    Raises:
        ValueError: as `generate` and `chat`; and for a beam search or several answers, which cannot be streamed. Errors
            are raised by the call itself, before the first piece.
        TypeError: an argument of another type, or an unknown one.
    """
    arguments.check(stream, locals())
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed}
    options |= {"choices": choices, "pattern": pattern, "schema": schema}
    if isinstance(prompt, str):
        if tools is not None or variables is not None:
            raise ValueError("tools and variables are for messages, and the prompt is a text: leave them out")
        options |= {"language": language, "source_language": source_language}
        options |= {"prefix": None if prefix is None else [prefix]}
        asked = request(m, prompt, stop=stop, settings=settings, **options)
    else:
        given = {"language": language, "source_language": source_language, "prefix": prefix}
        if named := [name for name, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(named)}: not for messages: leave it out")
        asked = _of_messages(m, prompt, tools, variables, stop=stop, settings=settings, **options)
    if asked.m.tokenizer is None:
        raise ValueError(registry.no_tokenizer(m))
    if not isinstance(asked.sampling, TokenByToken) or asked.sampling.answers > 1:
        raise ValueError(
            f"{type(asked.sampling).__name__} with several beams or answers is not known before its end: pass "
            "sampling=Greedy() or Sample(...) with one answer, or call generate"
        )
    return _pieces(asked)


def chat(
    m: arguments.Loaded,
    messages: Messages,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
    max_new_tokens: int | None = None,
    sampling: Annotated[Strategy, "Greedy(), Sample(temperature=, ...) or Beam(num_beams=, ...)"] | None = None,
    seed: int = 0,
    stop: int | str | Sequence[int | str] | None = None,
    choices: Sequence[str] | None = None,
    pattern: str | None = None,
    schema: Mapping[str, Any] | str | None = None,
    **settings: Any,
) -> str:
    """The assistant's answer to a conversation; to go on, append {"role": "assistant", "content": answer} to it.

    The prompt is that of the tokenizer's chat template: see `Tokenizer.encode_chat`, also for special tokens that a
    message spells out. The answer ends with the token by which the template ends the assistant's messages, or with one
    of those that end what `generate` writes. Special tokens in it are left out.

    Args:
        m: a model that was tuned on conversations, with its parameters and tokenizer.
        messages: the conversation, such as [{"role": "user", "content": "Hello"}].
        tools: the functions that the model may call, as JSON schemas. Its calls stand in the answer as it writes them.
        variables: further variables of the template, such as {"enable_thinking": False}.
        max_new_tokens, sampling, seed, stop, choices, pattern, schema, **settings: as of `generate`, for one answer.

    Raises:
        ValueError: as `generate` and `Tokenizer.chat`; several answers.
        TypeError: an argument of another type, or an unknown one.
    """
    arguments.check(chat, locals())
    asked = _of_messages(
        m, messages, tools, variables,
        max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop, choices=choices,
        pattern=pattern, schema=schema, settings=settings,
    )  # fmt: skip
    return asked.texts(*run(asked))[0][0]


def _of_messages(m: Any, messages: Any, tools: Any, variables: Any, *, stop: Any, **options: Any) -> Request:
    """The request for the assistant's next message."""
    if m.tokenizer is None:
        raise ValueError(registry.no_tokenizer(m))
    ids = m.tokenizer.encode_chat(messages, tools, **(variables or {}))
    stops = [stop] if isinstance(stop, int | str) else [*(stop or ())]
    end = m.tokenizer.end_of_turn_id
    stops += [] if end is None or end >= m.model.config.vocab_size else [end]
    asked = request(m, None, rows=[ids], stop=stops, **options)
    if getattr(asked.sampling, "num_return_sequences", 1) > 1:
        raise ValueError(f"num_return_sequences={asked.sampling.num_return_sequences}: a conversation has one answer")
    return asked


def _pieces(asked: Request) -> Iterator[str]:
    sent = ""
    for new, done in steps(asked, CHUNK):
        if asked.stop_strings and (count := asked.count_until(0, new)) <= len(new):
            new, done = new[:count], True
        text = asked.text(0, new, cut=False)
        count, done = sendable(text, asked.stop_texts, done)
        # A tokenizer may yet change the end of a text: what has been sent stays.
        if count > len(sent) and text.startswith(sent):
            yield text[len(sent) : count]
            sent = text[:count]
        if done:
            return


def sendable(text: str, stop_texts: Sequence[str], done: bool) -> tuple[int, bool]:
    """How many characters of a text are known to belong to the answer, and whether it has ended.

    Args:
        done: nothing follows the text.
    """
    end = min((at for stop in stop_texts if (at := text.find(stop)) >= 0), default=len(text))
    if done:
        return end, True
    longest = max(map(len, stop_texts), default=0)
    begins = [
        at for at in range(max(0, len(text) - longest + 1), len(text))
        if any(stop.startswith(text[at:]) for stop in stop_texts)
    ]  # fmt: skip
    held = min(begins, default=len(text))
    if end < min(held, len(text)):  # no other stop text may begin before it
        return end, True
    return min(held, end, len(text.rstrip(INCOMPLETE))), False
