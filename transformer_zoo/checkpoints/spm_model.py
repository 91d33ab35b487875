"""The file of a SentencePiece model, in the wire format of protocol buffers: its pieces with scores and types, and the
settings of how texts are read. The library reads such files, and hides some of what is in them.
Format: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto"""

import dataclasses
import struct
from collections.abc import Iterator, Mapping
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of pieces."""
BPE = 2
"""The kind of models that merge pairs by the scores of what they become."""
_TYPE, _FALLBACK, _ROLES = 3, 35, {"unk": 45, "bos": 46, "eos": 47, "pad": 48}  # fields of TrainerSpec
_CHARACTERS, _PREFIX, _TRIMMED = 2, 3, 4  # of NormalizerSpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """What a file holds.

    Attributes:
        pieces, scores, types: of each piece.
        kind: `BPE`, or the number of another kind.
        prefix: a text begins with a space.
        trimmed: white space at the ends of a text is left out, and in it repeated spaces.
        normalised: characters are replaced by others.
        roles: role, such as `bos` -> the piece.
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    kind: int = BPE
    prefix: bool = True
    trimmed: bool = False
    normalised: bool = False
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, data: bytes) -> "Model":
        """Of a file that the library has read."""
        fields = [*_fields(data)]
        pieces = [dict(_fields(value)) for number, value in fields if number == 1]
        trainer, normalizer = (
            dict(pair for number, value in fields if number == which for pair in _fields(value)) for which in (2, 3)
        )
        return cls(
            pieces=[piece[1].decode() for piece in pieces],
            scores=[struct.unpack("<f", piece.get(2, bytes(4)))[0] for piece in pieces],
            types=[piece.get(3, NORMAL) for piece in pieces],
            kind=trainer.get(_TYPE, 1), prefix=bool(normalizer.get(_PREFIX, 1)),
            trimmed=bool(normalizer.get(_TRIMMED, 1)), normalised=bool(normalizer.get(_CHARACTERS)),
            roles={role: trainer[number].decode() for role, number in _ROLES.items() if number in trainer},
        )  # fmt: skip

    def to_bytes(self) -> bytes:
        """The file, of a model that does not replace characters."""
        pieces = [
            _field(1, _field(1, piece.encode()) + _varint(2 * 8 + 5) + struct.pack("<f", score) + _field(3, kind))
            for piece, score, kind in zip(self.pieces, self.scores, self.types)
        ]
        roles = [_field(_ROLES[role], piece.encode()) for role, piece in self.roles.items()]
        trainer = [_field(_TYPE, self.kind), _field(_FALLBACK, int(BYTE in self.types)), *roles]
        normalizer = [_field(1, b"identity"), _field(_PREFIX, int(self.prefix)), _field(_TRIMMED, int(self.trimmed))]
        return b"".join([*pieces, _field(2, b"".join(trainer)), _field(3, b"".join(normalizer))])


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The numbers and the values of the fields: whole numbers, or bytes."""
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(data):
        field, wire = divmod(number(), 8)
        if wire == 0:
            yield field, number()
            continue
        size = number() if wire == 2 else {1: 8, 5: 4}[wire]
        yield field, data[at : at + size]
        at += size


def _field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number * 8) + _varint(value)
    return _varint(number * 8 + 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    return bytes([*data, value])
