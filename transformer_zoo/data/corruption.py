"""Rows for masked language models: some of the tokens are hidden, and what they were is to be predicted.

What is hidden follows from the documents and the generator of random numbers that a group of them gets; where masks are
static, from the row alone. Text is an array int32[n, 2]: tokens, and the words that they are parts of. A word is a
stretch of equal numbers; -1 is no word and never hidden, as a special token.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from transformer_zoo.data.packing import Rows
from transformer_zoo.data.tokenizers import ROLES, Encoding, Tokenizer

Unit = Literal["tokens", "words", "spans"]

# Of spans of 1 to 10 words: geometric with p = 0.2, 3.8 on average (Joshi et al. 2020, section 3.1).
SPAN_LENGTHS = 0.8 ** np.arange(10) / np.sum(0.8 ** np.arange(10))


def masked_rows(
    documents: list[dict[str, Any]],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    packing: str,
    **how: Any,
) -> Rows:
    """The rows of a group of documents, each [CLS] text [SEP] (Liu et al. 2019, section 4.2).

    Args:
        packing: `documents`: each document by itself, cut into rows that it fills, all but the last (DOC-SENTENCES);
            `concat`: documents one behind the other with a separator between them, cut into rows (FULL-SENTENCES).
        how: rate, unit, static, mask_share and random_share, as `mask` takes them.
    """
    texts, cls, sep = encode(documents, tokenizer), special(tokenizer.cls_id), special(tokenizer.sep_id)
    if packing == "concat" and texts:
        texts = [np.concatenate([part for text in texts for part in (text, sep)][:-1])]
    room = length - 2
    framed = [np.concatenate([cls, text[at : at + room], sep]) for text in texts for at in range(0, len(text), room)]
    return mask(framed, rng, tokenizer=tokenizer, length=length, places=predictions(room, how["rate"]), **how)


def encode(documents: list[dict[str, Any]], tokenizer: Tokenizer) -> list[np.ndarray]:
    """The text of each document that has some."""
    found = tokenizer.encode_batch([document["text"] for document in documents])
    return [text_of(encoding, tokenizer) for encoding in found if len(encoding)]


def text_of(encoding: Encoding, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens and their words. Special tokens among them, such as the unknown one, are no words."""
    words = np.where(np.isin(encoding.ids, special_ids(tokenizer)), -1, encoding.words)
    return np.stack([encoding.ids, words], axis=1).astype(np.int32)


def special_ids(tokenizer: Tokenizer) -> list[int]:
    """The tokens that have a role rather than a meaning."""
    ids = (getattr(tokenizer, f"{role}_id") for role in ROLES)
    return sorted({i for i in ids if i is not None})


def special(token: int) -> np.ndarray:
    """A special token as text."""
    return np.array([[token, -1]], np.int32)


def predictions(tokens: int, rate: float) -> int:
    """How many of so many tokens are predicted: at least one."""
    return max(1, int(rate * tokens + 0.5))


def mask(
    texts: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    tokenizer: Tokenizer,
    length: int,
    places: int,
    rate: float,
    unit: Unit,
    static: bool,
    mask_share: float,
    random_share: float,
) -> Rows:
    """Texts as rows of one length, with some of their tokens hidden (Devlin et al. 2019, section 3.1).

    Args:
        places: how many tokens may be hidden in a row, P.
        rate: share of a row's tokens, not counting special ones, that are to be predicted.
        unit: what is chosen: single tokens, whole words, or spans of words, which are all hidden in the same way.
        static: a row of the same tokens always gets the same masks.
        mask_share, random_share: how many of those to predict become the mask token, and any ordinary token; the others
            stay as they are.

    Returns:
        tokens_BT: int32: what the model reads; padding at the end.
        valid_BT: bool: no padding.
        masked_BP: int32: where the hidden tokens are, in order; 0 beyond the last of them.
        targets_BP: int32: what they were; 0 beyond the last.
        weights_BP: float32: 1 for each of them, 0 beyond the last.
    """
    pad = 0 if tokenizer.pad_id is None else tokenizer.pad_id
    ordinary = np.setdiff1d(np.arange(tokenizer.vocab_size, dtype=np.int32), special_ids(tokenizer))
    rows = {
        "tokens_BT": np.full((len(texts), length), pad, np.int32),
        "valid_BT": np.arange(length) < np.array([len(text) for text in texts], int)[:, None],
        "masked_BP": np.zeros((len(texts), places), np.int32),
        "targets_BP": np.zeros((len(texts), places), np.int32),
        "weights_BP": np.zeros((len(texts), places), np.float32),
    }
    for row, text in enumerate(texts):
        draw = np.random.default_rng(_digest(text)) if static else rng
        tokens, words = text.T
        chosen = choose(words, predictions((words >= 0).sum(), rate), unit, draw)
        where = np.concatenate([*chosen, np.empty(0, int)])
        # Spans share their fate; of words each token has its own.
        sizes = [len(part) for part in chosen] if unit == "spans" else np.ones(len(where), int)
        fate = np.repeat(draw.random(len(sizes)), sizes)
        fates = fate < mask_share, fate < mask_share + random_share
        read = np.select(fates, (tokenizer.mask_id, draw.choice(ordinary, len(where))), tokens[where])
        order = np.argsort(where)
        rows["tokens_BT"][row, : len(text)] = tokens
        rows["tokens_BT"][row, where] = read
        rows["masked_BP"][row, : len(where)] = where[order]
        rows["targets_BP"][row, : len(where)] = tokens[where[order]]
        rows["weights_BP"][row, : len(where)] = 1
    return rows


def choose(words: np.ndarray, budget: int, unit: Unit, rng: np.random.Generator) -> list[np.ndarray]:
    """The places of the tokens to predict, as many as the budget says or, where what is left is too large, fewer.

    Args:
        words: int[n], the word of each token; -1: never.

    Returns:
        Of each token, word or span that was chosen, its places in the text.
    """
    maskable = np.flatnonzero(words >= 0)
    if unit == "tokens":
        return list(rng.permutation(maskable)[:budget, None])
    begins = np.flatnonzero((np.diff(words[maskable]) != 0) | (np.diff(maskable) != 1)) + 1
    parts = np.split(maskable, begins)
    return (_spans if unit == "spans" else _whole_words)(parts, budget, rng)


def _whole_words(words: list[np.ndarray], budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Words in any order, without those for which there is no room left."""
    chosen = []
    for word in rng.permutation(len(words)):
        if len(words[word]) <= budget:
            chosen.append(words[word])
            budget -= len(words[word])
        if not budget:
            break
    return chosen


def _spans(words: list[np.ndarray], budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Spans of words, nowhere one upon another; the last is cut to what there is room for, in whole words.

    First a length is drawn and then its place among all that are free, so that no place makes long spans rarer.
    """
    chosen, free = [], np.ones(len(words), bool)
    while budget and free.any():
        size = min(1 + rng.choice(len(SPAN_LENGTHS), p=SPAN_LENGTHS), len(words))
        while not len(starts := np.flatnonzero(np.convolve(free, np.ones(size), "valid") == size)):
            size -= 1
        start = rng.choice(starts)
        ends = np.cumsum([len(word) for word in words[start : start + size]])
        size = np.searchsorted(ends, budget, side="right")
        if not size:
            break
        free[start : start + size] = False
        chosen.append(np.concatenate(words[start : start + size]))
        budget -= ends[size - 1]
    return chosen


def _digest(text: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(text[:, 0].astype("<i4").tobytes(), digest_size=16).digest(), "big")
