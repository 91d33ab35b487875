"""GGUF files, of llama.cpp: weights, configuration, tokenizer and chat template in one file.

A file is the header (the magic, version and two counts), the metadata (key, type, value), the tensors' descriptions
(name, dimensions, type, offset) and their data. No size in a file is trusted: each is compared with the bytes that are
left. The blocks of quantised numbers are read by the package `gguf`.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import mmap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from transformer_zoo import json_files

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {
    0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8",
}  # fmt: skip
STRING, ARRAY = 8, 9
PLAIN = {0: np.dtype("<f4"), 1: np.dtype("<f2"), 28: np.dtype("<f8"), 30: np.dtype(ml_dtypes.bfloat16)}
"""Types of tensors that are stored as they are."""
QUANTISED = (
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
"""Types of blocks of quantised numbers, by their names in the package `gguf`."""
READ = ", ".join(QUANTISED)
MAX_AXES = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor in a file; `np.asarray` reads it, in float32 if it is quantised."""

    file: Path
    name: str
    offset: int
    kind: int
    """The number of its type in the format."""
    shape: tuple[int, ...]
    size: int
    """Of its data, in bytes."""

    @property
    def dtype(self) -> np.dtype:
        return PLAIN.get(self.kind, np.dtype(np.float32))

    def items(self) -> "list[Tensor]":
        """The tensors that lie one after another along the first axis.

        Raises:
            ValueError: it has a single axis.
        """
        if len(self.shape) < 2:
            raise damaged(self.file, f"{json_files.excerpt(self.name)} {list(self.shape)} is not of several tensors")
        size = self.size // self.shape[0]
        return [
            dataclasses.replace(self, offset=self.offset + i * size, size=size, shape=self.shape[1:])
            for i in range(self.shape[0])
        ]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raw = np.memmap(self.file, np.uint8, "r", self.offset, (self.size,))
        if self.kind in PLAIN:
            return raw.view(self.dtype).reshape(self.shape)
        import gguf

        rows = raw.reshape(*self.shape[:-1], -1)
        return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(self.kind)).reshape(self.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class File:
    """What a file holds."""

    metadata: dict[str, Any]
    """Numbers, texts, and lists of them."""
    tensors: dict[str, Tensor]


def read(file: str | Path) -> File:
    """The metadata and the tensors of a file; their data are not read yet.

    Raises:
        ValueError: the file is damaged, of a version or of a type of numbers that is not known.
        ImportError: its numbers are quantised, and the package `gguf` is not installed.
    """
    file = Path(file)
    with file.open("rb") as stream:
        if not stream.read(1):
            raise damaged(file, "it is empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Header(file, data).read()


class _Header:
    """Reads from the beginning of a file on, and never beyond its end."""

    def __init__(self, file: Path, data: Any) -> None:
        self.file, self.data, self.at = file, data, 0

    def read(self) -> File:
        if self.take(4, "the magic") != MAGIC:
            raise damaged(self.file, "it does not begin with GGUF: it is of another format")
        version = self.number("<u4")
        if version not in VERSIONS:
            raise damaged(self.file, f"its version is {version}: only {' and '.join(map(str, VERSIONS))} are known")
        tensors, keys = self.number("<u8"), self.number("<u8")
        metadata: dict[str, Any] = {}
        for _ in range(self.count(keys, 13, "keys")):
            key = self.text("a key")
            if key in metadata:
                raise damaged(self.file, f"the key {json_files.excerpt(key)} is there twice")
            metadata[key] = self.value(self.number("<u4"), key)
        described = [self.tensor() for _ in range(self.count(tensors, 32, "tensors"))]
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
            raise damaged(self.file, f"general.alignment is {json_files.excerpt(repr(alignment))}: no power of two")
        aligned = lambda at: -(-at // alignment) * alignment
        start = aligned(self.at)
        found: dict[str, Tensor] = {}
        for name, shape, kind, offset in described:
            if name in found:
                raise damaged(self.file, f"the tensor {json_files.excerpt(name)} is there twice")
            found[name] = self.placed(name, shape, kind, start + offset)
        end = self.at  # the tensors must follow one another from here to the end of the file, with zeros between them
        for tensor in sorted(found.values(), key=lambda tensor: tensor.offset):
            if tensor.offset != aligned(end):
                shown = json_files.excerpt(tensor.name)
                raise damaged(self.file, f"{shown} begins at byte {tensor.offset}, not at {aligned(end)}")
            self.zeros(end, tensor.offset)
            end = tensor.offset + tensor.size
        # Some writers leave out the zeros behind the last tensor; a file with a part of them has lost bytes before.
        if len(self.data) not in (end, aligned(end)):
            raise damaged(self.file, f"its tensors end at byte {end}, and the file has {len(self.data)}")
        self.zeros(end, len(self.data))
        return File(metadata=metadata, tensors=found)

    def zeros(self, start: int, stop: int) -> None:
        """Raises ValueError if these bytes, which belong to no tensor, are not zero: then tensors are not in place."""
        if any(self.data[start:stop]):
            raise damaged(self.file, f"the bytes from {start} to {stop} are of no tensor, and not zero")

    def take(self, size: int, what: str) -> bytes:
        """The next bytes."""
        if size > len(self.data) - self.at:
            raise damaged(
                self.file, f"{what} at byte {self.at} claims {size} bytes, and {len(self.data) - self.at} are left"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def count(self, number: int, least: int, what: str) -> int:
        """A number of things that take at least so many bytes each."""
        if number * least > len(self.data) - self.at:
            raise damaged(self.file, f"it claims {number} {what}, for which its {len(self.data)} bytes do not suffice")
        return number

    def number(self, kind: str) -> Any:
        dtype = np.dtype(kind)
        return np.frombuffer(self.take(dtype.itemsize, "a number"), dtype)[0].item()

    def text(self, what: str) -> str:
        raw = self.take(self.number("<u8"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise damaged(self.file, f"{what} before byte {self.at} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        """The value of a key: a number, a text, or a list of either."""
        key = json_files.excerpt(key)
        if kind == STRING:
            return self.text(f"the value of {key}")
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY:
            raise damaged(self.file, f"the value of {key} has the unknown type {kind}")
        kind, length = self.number("<u4"), self.number("<u8")
        if kind == STRING:
            return [self.text(f"an item of {key}") for _ in range(self.count(length, 8, f"items of {key}"))]
        if kind not in NUMBERS:
            raise damaged(self.file, f"{key} is a list of items of the type {kind}: only numbers and texts are known")
        dtype = np.dtype(NUMBERS[kind])
        return np.frombuffer(self.take(length * dtype.itemsize, key), dtype).tolist()

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, type and offset of a tensor."""
        name, axes = self.text("a tensor's name"), self.number("<u4")
        if axes > MAX_AXES:
            raise damaged(self.file, f"{json_files.excerpt(name)} has {axes} dimensions: at most {MAX_AXES} are known")
        sizes = [self.number("<u8") for _ in range(axes)]
        return name, tuple(sizes[::-1]), self.number("<u4"), self.number("<u8")

    def placed(self, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Tensor:
        """A tensor whose data are in the file."""
        shown = json_files.excerpt(name)
        if kind in PLAIN:
            block, size = 1, PLAIN[kind].itemsize
        else:
            block, size = _block(kind, self.file, shown)
        elements = 1
        for axis in shape:
            elements *= axis
        if not elements or (shape[-1] if shape else 1) % block:
            raise damaged(self.file, f"{shown} has the shape {list(shape)}, whose rows are no multiple of {block}")
        size *= elements // block
        return Tensor(file=self.file, name=name, offset=offset, kind=kind, shape=shape, size=size)


def _block(kind: int, file: Path, name: str) -> tuple[int, int]:
    """The numbers and the bytes of a block of a quantised type."""
    try:
        import gguf
    except ImportError as error:
        raise ImportError(f"{file} is quantised: pip install 'transformer-zoo[gguf]', which reads it") from error
    known = {int(type): size for type, size in gguf.GGML_QUANT_SIZES.items() if type.name in QUANTISED}
    if kind not in known:
        raise damaged(file, f"{name} has the type {kind}, which is not read: only F16, F32, F64, BF16, {READ} are")
    return known[kind]


def damaged(file: Path, fault: str) -> ValueError:
    """The error for a file that cannot be read."""
    return ValueError(f"{file} cannot be read: {fault}")
