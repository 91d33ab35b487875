"""`flax_model.msgpack`, as the Flax models of transformers (until version 4) wrote it, under the names of torch.

The file is one nested dict of arrays; other contents are refused. The arrays are mapped: only the parts of a file that
are used are in memory.
Format: https://github.com/msgpack/msgpack/blob/master/spec.md; its arrays: flax/serialization.py of Flax.
"""

import dataclasses
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from transformer_zoo.checkpoints import safetensors
from transformer_zoo.checkpoints.safetensors import Tensor

WEIGHTS = "flax_model.msgpack"
NAMES = {"kernel": "weight", "embedding": "weight", "scale": "weight"}  # Flax's -> torch's
DTYPES = {dtype.name: dtype for dtype in safetensors.DTYPES.values()}
NDARRAY = 1  # Flax's type of extension for an array
CHUNKED = "__msgpack_chunked_array__"  # marks a dict that is one array of more than a gigabyte, in chunks
MAX_VALUES = 1_000_000
MAX_DEPTH = 64
MAX_AXES = 64  # numpy's limit
MAX_TEXT = 1_000

# First byte of a value -> its kind, and the layout of the number after it (a length, a count, or the value itself).
KINDS = {0xC3: ("true", ""), 0xC4: ("bytes", ">B"), 0xC5: ("bytes", ">H"), 0xC6: ("bytes", ">I")}
KINDS |= {0xC7: ("extension", ">B"), 0xC8: ("extension", ">H"), 0xC9: ("extension", ">I")}
KINDS |= {0xCC: ("integer", ">B"), 0xCD: ("integer", ">H"), 0xCE: ("integer", ">I"), 0xCF: ("integer", ">Q")}
KINDS |= {0xD9: ("text", ">B"), 0xDA: ("text", ">H"), 0xDB: ("text", ">I")}
KINDS |= {0xDC: ("list", ">H"), 0xDD: ("list", ">I"), 0xDE: ("dict", ">H"), 0xDF: ("dict", ">I")}
SHORT = (("integer", 0x00, 0x80), ("dict", 0x80, 0x90), ("list", 0x90, 0xA0), ("text", 0xA0, 0xC0))
EXTENSIONS = {0xD4 + power: 1 << power for power in range(5)}


def read_folder(folder: str | Path) -> dict[str, Any]:
    """The tensors of the `flax_model.msgpack` of a folder, as `read_file`.

    Raises:
        FileNotFoundError: the folder has no such file.
    """
    return read_file(Path(folder) / WEIGHTS)


def read_file(file: str | Path) -> dict[str, Any]:
    """The tensors of one file, with their names and axes in torch: a `kernel` is transposed.

    Raises:
        ValueError: the file is damaged, or holds something other than a nested dict of arrays.
    """
    file = Path(file)
    try:
        with file.open("rb") as stream:
            tree = _Reader(file, stream).whole()
        if not isinstance(tree, dict):
            raise ValueError("it is not a dict of arrays")
        tensors: dict[str, Any] = {}
        for path, array in _leaves(tree):
            name, tensor = _published(path, array)
            if name in tensors:
                raise ValueError(f"two of its arrays are both called {name[:200]!r} in torch")
            tensors[name] = tensor
        return tensors
    except ValueError as error:  # UnicodeDecodeError too
        raise ValueError(
            f"{file} cannot be read: {str(error)[:500]}. If it was downloaded or copied, do so again; else take these"
            " weights as safetensors, from where they were published."
        ) from error


def _leaves(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, name))
        else:
            yield (*above, name), value


def _published(path: tuple[str, ...], array: Any) -> tuple[str, Any]:
    *above, last = path
    name = ".".join((*above, NAMES.get(last, last)))
    if not isinstance(array, Tensor | Chunked):
        raise ValueError(f"{name[:200]!r} is a {type(array).__name__} and not an array")
    if last != "kernel":
        return name, array
    if len(array.shape) != 2:
        raise ValueError(f"{name[:200]!r} is a kernel of shape {list(array.shape)}, and those of two axes are known")
    return name, Transposed(array)


@dataclasses.dataclass(frozen=True)
class Transposed:
    """The transpose of a matrix."""

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[::-1]

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array).T


@dataclasses.dataclass(frozen=True)
class Chunked:
    """An array in several parts of a file. Reading it copies it."""

    parts: tuple[Tensor, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.concatenate([np.asarray(part) for part in self.parts]).reshape(self.shape)


class _Reader:
    """Reads the part of msgpack that Flax writes: dicts with string keys, arrays, and the values that describe them."""

    def __init__(self, file: Path, stream: BinaryIO):
        self.file, self.stream, self.size = file, stream, file.stat().st_size
        self.values = 0

    def whole(self) -> Any:
        value = self.value(0)
        if self.stream.tell() != self.size:
            raise ValueError(f"its dict ends at byte {self.stream.tell()}, but the file has {self.size}")
        return value

    def value(self, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError(f"it has more than {MAX_VALUES} values, or more than {MAX_DEPTH} levels")
        match self.head():
            case "dict", count:
                return self.mapping(count, depth)
            case "extension", length:
                return self.array(length)
            case "integer", value:
                return value
            case "true", _:
                return True
            case kind, _:
                raise ValueError(f"it has a {kind} where a dict of arrays has none")

    def head(self) -> tuple[str, int]:
        """The kind of the next value, and its number: of bytes, of items, or the value itself."""
        byte = self.take(1)[0]
        for kind, first, end in SHORT:
            if first <= byte < end:
                return kind, byte - first
        if byte in EXTENSIONS:
            return "extension", EXTENSIONS[byte]
        if byte not in KINDS:
            raise ValueError(
                f"it has a value of the type {byte:#x} at byte {self.stream.tell() - 1}, which no array has"
            )
        kind, layout = KINDS[byte]
        return kind, sum(struct.unpack(layout, self.take(struct.calcsize(layout))))

    def take(self, count: int) -> bytes:
        self.check(count)
        return self.stream.read(count)

    def check(self, count: int) -> None:
        if count > self.size - self.stream.tell():
            raise ValueError(f"{count} bytes are missing after byte {self.stream.tell()}: truncated, or not msgpack")

    def expect(self, kind: str, what: str) -> int:
        found, number = self.head()
        if found != kind:
            raise ValueError(f"it has a {found} where {what} should be")
        return number

    def text(self, what: str) -> str:
        if (length := self.expect("text", what)) > MAX_TEXT:
            raise ValueError(f"it has {what} of {length} bytes")
        return self.take(length).decode("utf-8")

    def mapping(self, count: int, depth: int) -> Any:
        found: dict[str, Any] = {}
        for _ in range(count):
            name = self.text("a name")
            if name in found:
                raise ValueError(f"it has the name {name[:200]!r} twice")
            found[name] = self.value(depth + 1)
        return _together(found) if CHUNKED in found else found

    def array(self, length: int) -> Tensor:
        (code,) = self.take(1)
        self.check(length)
        end = self.stream.tell() + length
        if code != NDARRAY:
            raise ValueError(f"it has an extension of type {code}, and Flax's arrays are of type {NDARRAY}")
        if self.expect("list", "an array's description") != 3:
            raise ValueError("it has an array that is not described by shape, dtype and values")
        if (axes := self.expect("list", "a shape")) > MAX_AXES:
            raise ValueError(f"it has an array of {axes} axes")
        shape = tuple(self.expect("integer", "a size") for _ in range(axes))
        name = self.text("a dtype")
        if name not in DTYPES:
            raise ValueError(f"it has an array of the dtype {name[:80]!r}, and those that are read are {list(DTYPES)}")
        values = self.expect("bytes", "an array's values")
        offset = self.stream.tell()
        if math.prod(shape) * DTYPES[name].itemsize != values or offset + values != end:
            raise ValueError(f"it has {values} bytes for an array of {name} of shape {list(shape)}")
        self.stream.seek(end)
        return Tensor(file=self.file, offset=offset, dtype=DTYPES[name], shape=shape)


def _together(found: Mapping[str, Any]) -> Chunked:
    """The array that a dict of its chunks stands for."""
    shape, parts = (_listed(found.get(key)) for key in ("shape", "chunks"))
    if (
        not parts
        or not all(type(size) is int for size in shape)
        or not all(isinstance(part, Tensor) and part.dtype == parts[0].dtype for part in parts)
        or sum(math.prod(part.shape) for part in parts) != math.prod(shape)
    ):
        raise ValueError("it has an array in chunks that do not fit together")
    return Chunked(parts, shape)


def _listed(values: Any) -> tuple[Any, ...]:
    """A list, which Flax writes as a dict from "0", "1", ..."""
    if not isinstance(values, dict) or list(values) != [str(i) for i in range(len(values))]:
        raise ValueError("it has an array in chunks that are not in order")
    return tuple(values.values())
