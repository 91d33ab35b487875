"""The bytes that each token adds to a text, by which answers are held to a pattern."""

import re
from collections.abc import Mapping
from typing import Any

TokenBytes = tuple[list[bytes], list[bytes]]
"""Of each token at the beginning of a text, and of each behind others."""

UNSEEN = [*range(33), *range(127, 161), 173]
"""The bytes that a byte-level vocabulary spells as the characters from 256 on. Others are spelt as themselves."""
BYTE_OF = {chr(byte): byte for byte in range(256) if byte not in UNSEEN} | {
    chr(256 + n): byte for n, byte in enumerate(UNSEEN)
}
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How a vocabulary of pieces spells a byte."""


def of_bytes(spellings: list[str | None], added: Mapping[int, Any]) -> TokenBytes:
    """Of a vocabulary in which each token is one byte or several, each written as one character."""

    def of(i: int, spelling: str | None) -> bytes:
        if spelling is None or i in added and added[i].special:
            return b""
        if i in added or not BYTE_OF.keys() >= {*spelling}:
            return spelling.encode()
        return bytes(BYTE_OF[character] for character in spelling)

    found = [of(i, spelling) for i, spelling in enumerate(spellings)]
    return found, found


def of_pieces(spellings: list[str | None], added: Mapping[int, Any], decode: Any) -> TokenBytes:
    """Of another vocabulary: what a token adds to the text of others, between letters, since white space at the ends of
    a text may be left out."""
    is_special = lambda i: i in added and added[i].special
    usual = (i for i, spelling in enumerate(spellings) if spelling is not None and not is_special(i))
    # A token of letters without a space in front.
    is_inside = lambda text, i: text.isalpha() and decode([i, i]) == 2 * text
    anchor = next(([i] for i in usual if is_inside(decode([i]), i)), [])
    letters = decode(anchor)

    def of(i: int, before: list[int]) -> bytes:
        if spellings[i] is None or is_special(i):
            return b""
        if byte := BYTE.fullmatch(spellings[i]):
            return bytes.fromhex(byte[1])
        start, whole = decode(before), decode([*before, i, *anchor])
        text = whole[len(start) : len(whole) - len(letters)]
        return text.encode() if whole == start + text + letters and INCOMPLETE not in text else b""

    ids = range(len(spellings))
    return [of(i, []) for i in ids], [of(i, anchor) for i in ids]
