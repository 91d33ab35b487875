"""Texts that an encoder-decoder generates from the sources of examples."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from transformer_zoo import registry
from transformer_zoo.data.documents import text_in
from transformer_zoo.data.seq2seq import frame, framed
from transformer_zoo.data.tokenizers import Tokenizer
from transformer_zoo.generation.generate import decode_text, generate
from transformer_zoo.generation.strategy import Strategy
from transformer_zoo.generation.token_ids import TokenIds


def write(
    m: Any,
    objective: Any,
    examples: Sequence[dict[str, Any]],
    *,
    length: int,
    max_new_tokens: int | None = None,
    sampling: Strategy | None = None,
    batch_size: int = 16,
) -> list[str]:
    """The text that the model generates for each example. Sources are read as in training: with the objective's prefix
    and special tokens, truncated to `length`.

    Examples of similar lengths share a batch, and all batches are of one size, so that few programs are compiled.

    Args:
        m: a `Bundle` of an encoder-decoder with its tokenizer.
        objective: a `Seq2SeqLM`, which names the fields, the prefix and the languages.
        examples: each with a text in the source's field; the target's is not read.
        length: tokens of a source, as data.length.
        max_new_tokens: the largest number for an example. None: the length of a target in training.
        sampling: as in `generate`. Of several answers to a source, the first, which is the best, is returned.
        batch_size: sources at a time.

    Raises:
        ValueError: an objective without a source and a target, an example without the field, a model that
            lacks a tokenizer or generates nothing, an unknown language, more tokens than positions.
    """
    if not all(hasattr(objective, name) for name in ("source", "target", "prefix", "languages")):
        raise ValueError(
            f"the objective {objective.name} has no source to read and no target to write: seq2seq-lm has them"
        )
    if (tokenizer := m.tokenizer) is None:
        raise ValueError(registry.no_tokenizer(m))
    token_ids = TokenIds.of_model(m)
    if token_ids.decoder_start is None and objective.start_id is not None:
        token_ids = dataclasses.replace(token_ids, decoder_start=objective.start_id)
        m = dataclasses.replace(m, token_ids=token_ids)
    texts = [objective.prefix + text_in(example, objective.source) for example in examples]
    source_language, target_language = objective.languages
    rows = [row for row, _ in framed(texts, tokenizer, length, language=source_language)] if texts else []
    settings = {
        "max_new_tokens": objective.target_length_for(length) if max_new_tokens is None else max_new_tokens,
        "sampling": sampling,
        "language": _in_targets(tokenizer, target_language),
    }
    written, size = [""] * len(rows), min(batch_size, len(rows))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    for first in range(0, len(order), batch_size):
        batch = order[first : first + batch_size]
        new = generate(m, [rows[i] for i in batch + batch[-1:] * (size - len(batch))], **settings)
        for i, best in zip(batch, new.reshape(size, -1, new.shape[-1])[:, 0]):
            written[i] = decode_text(tokenizer, best, token_ids.eos)
    return written


def _in_targets(tokenizer: Tokenizer, language: str | None) -> str | None:
    """The language, if targets are marked with it. None: the source is, as Marian's."""
    if language is None:
        return None
    ends = np.concatenate(frame(tokenizer, target=True, language=language))
    return language if tokenizer.language_id(language) in ends else None
