"""ByT5's tokenizer: the bytes of the text, and no file."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken

from transformer_zoo.data.encoding import Cutter, Frame, Tokens, utf8_widths

TOKENS = ("<pad>", "</s>", "<unk>")
"""They come first; then the 256 bytes, and then the sentinels."""

BYTES = range(len(TOKENS), len(TOKENS) + 256)

SENTINELS = 125
"""As many as fill the published models' vocabulary up to 384."""

_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")


def byt5(
    contents: Sequence[bytes], config: Mapping[str, Any], added: Mapping[int, AddedToken]
) -> "tuple[Utf8, dict[str, tuple[str, ...]]]":
    """As its settings have it: `extra_ids` sentinels, and what stands beside them."""
    count = config.get("extra_ids")
    sentinels = [f"<extra_id_{n}>" for n in range(SENTINELS if count is None else count)]
    first = {i: AddedToken(token, special=True, lstrip=True, rstrip=True) for i, token in enumerate(TOKENS)}
    return Utf8(
        first | {i: AddedToken(token, special=True) for i, token in enumerate(sentinels, BYTES.stop)} | added
    ), {}


class Utf8(Cutter):
    """Each byte of a text in UTF-8 is a token, whose id is the byte's value and three (Xue et al. 2022, section 3.1).

    The sentinels are those of the published tokenizer, <extra_id_0> right behind the bytes. The published models were
    pretrained without them: the last bytes, 258, 257, ..., stood in their place, and also for themselves, so that what
    was cut out cannot always be put back.

    Args:
        tokens: all that are not bytes, by id.

    Raises:
        ValueError: one of them has the id of a byte.
    """

    kind = "bytes"

    def __init__(self, tokens: Mapping[int, AddedToken]) -> None:
        for i, token in tokens.items():
            if i in BYTES:
                raise ValueError(f"the added token {token.content!r} cannot have id {i}, which is a byte's")
        super().__init__(tokens, Frame(between=(1,), last=(1,)))
        self.vocab_size = 1 + max(BYTES.stop - 1, *tokens)

    def cut(self, text: str) -> Tokens:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32) + BYTES.start
        character = np.repeat(np.arange(len(text), dtype=np.int32), utf8_widths(text))
        begins = np.zeros(len(text), np.int32)
        begins[[match.start() for match in _WORD.finditer(text)]] = 1
        return ids, np.stack([character, character + 1], axis=1), np.cumsum(begins, dtype=np.int32)[character] - 1

    def encode_bytes(self, texts: list[str], special: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        pairs = []
        for text, (ids, offsets, _) in zip(texts, self._cut_all(texts, special)):
            counts = np.ones(len(ids), np.int32)
            for place in np.flatnonzero((ids < BYTES.start) | (ids >= BYTES.stop)):
                counts[place] = len(text[slice(*offsets[place])].encode())
            pairs.append((ids, counts))
        return pairs

    def decode(self, ids: list[int], special: bool) -> str:
        """Bytes that are no UTF-8, as a model may write, are left out, and so are ids without a token."""
        parts = []
        for i in ids:
            if i in BYTES:
                parts.append(bytes([i - BYTES.start]))
            elif i in self.tokens and (special or not self.tokens[i].special):
                parts.append(self.tokens[i].content.encode())
        return b"".join(parts).decode(errors="ignore")

    def token(self, i: int) -> str | None:
        """Bytes are spelt as the characters of Latin-1."""
        if i in BYTES:
            return chr(i - BYTES.start)
        return self.tokens[i].content if i in self.tokens else None

    def id_of(self, token: str) -> int | None:
        if token in self.whole:
            return self.whole[token]
        return ord(token) + BYTES.start if len(token) == 1 and ord(token) < 256 else None

    def files(self, roles: dict[str, str]) -> dict[str, bytes]:
        return {}

    def __reduce__(self) -> tuple:
        return Utf8, (self.tokens,)
