"""ByT5's tokenizer: the bytes of the text, and no file."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transformer_zoo.data.encoding import Cutter, Frame, Tokens, utf8_widths

TOKENS = ("<pad>", "</s>", "<unk>")
"""They come first; then the 256 bytes, and then the sentinels."""

SENTINELS = 125
"""As many as fill the published models' vocabulary up to 384."""

_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")


def byt5(contents: Sequence[bytes], config: Mapping[str, Any], added: Any) -> "tuple[Utf8, dict[str, tuple[str, ...]]]":
    """As tokenizer_config.json has it."""
    return Utf8(config.get("extra_ids") or SENTINELS), {}


class Utf8(Cutter):
    """Each byte of a text in UTF-8 is a token, whose id is the byte's value and three (Xue et al. 2022, section 3.1).

    The sentinels are those of the published tokenizer, <extra_id_0> right behind the bytes. The published models were
    pretrained without them: the last bytes, 258, 257, ..., stood in their place, and also for themselves, so that what
    was cut out cannot always be put back.

    Args:
        sentinels: how many.
    """

    kind = "bytes"

    def __init__(self, sentinels: int = SENTINELS) -> None:
        self._arguments = (sentinels,)
        special = {token: i for i, token in enumerate(TOKENS)}
        special |= {f"<extra_id_{n}>": len(TOKENS) + 256 + n for n in range(sentinels)}
        super().__init__(special, Frame(between=(1,), last=(1,)))
        self._spelt = {i: token for token, i in special.items()}
        self.vocab_size = len(TOKENS) + 256 + sentinels
        self.serialized = f"UTF-8, {sentinels} sentinels".encode()

    def cut(self, text: str) -> Tokens:
        ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32) + len(TOKENS)
        character = np.repeat(np.arange(len(text), dtype=np.int32), utf8_widths(text))
        begins = np.zeros(len(text), np.int32)
        begins[[match.start() for match in _WORD.finditer(text)]] = 1
        return ids, np.stack([character, character + 1], axis=1), np.cumsum(begins, dtype=np.int32)[character] - 1

    def encode_bytes(self, texts: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        ids = (self.cut(text)[0] for text in texts)
        return [(i, np.ones(len(i), np.int32)) for i in ids]

    def decode(self, ids: list[int], special: bool) -> str:
        """Bytes that are no UTF-8, as a model may write, are left out."""
        spelt = lambda i: self._spelt[i].encode() if special else b""
        parts = (spelt(i) if i in self._spelt else bytes([i - len(TOKENS)]) for i in ids)
        return b"".join(parts).decode(errors="ignore")

    def token(self, i: int) -> str | None:
        """Bytes are spelt as the characters of Latin-1."""
        return self._spelt.get(i) or (chr(i - len(TOKENS)) if 0 <= i < self.vocab_size else None)

    def id_of(self, token: str) -> int | None:
        return ord(token) + len(TOKENS) if len(token) == 1 and ord(token) < 256 else self.special.get(token)

    def files(self, roles: dict[str, str]) -> dict[str, bytes]:
        config = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": self._arguments[0]}
        config |= {f"{role}_token": token for role, token in roles.items()}
        return {"tokenizer_config.json": json.dumps(config, indent=2).encode()}

    def __reduce__(self) -> tuple:
        return Utf8, self._arguments
