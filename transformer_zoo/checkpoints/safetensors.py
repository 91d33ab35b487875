"""Folders of safetensors files: the weights of the Hugging Face layout, read lazily and written atomically.

A file is eight bytes (the header's length, little endian), the header (JSON: name -> dtype, shape, offsets) and the
tensors one after the other. Nothing in a file is trusted: the whole header is checked before a tensor is read.
Format: https://github.com/huggingface/safetensors#format.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from transformer_zoo import folders, json_files

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_AXES = 64  # numpy's own limit
MAX_HEADER_BYTES = 100_000_000  # the reference reader's own limit
OWN_FILES = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor in a file. `np.asarray` maps it: only the pages that are used are read, and they are released with the
    array."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    """In bytes. None: contiguous, as always in safetensors."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        if self.strides is None:
            return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)
        extent = sum((size - 1) * stride for size, stride in zip(self.shape, self.strides)) + self.dtype.itemsize
        buffer = np.memmap(self.file, np.uint8, "r", self.offset, (extent,))
        return np.ndarray(self.shape, self.dtype, buffer, strides=self.strides)


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, from `model.safetensors`, or from the shards of `model.safetensors.index.json`.

    Raises:
        FileNotFoundError: the folder holds neither, or a shard is missing.
        ValueError: a file is damaged, or the index and its shards contradict each other.
    """
    folder = Path(folder)
    return read_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else read_shards(folder / INDEX, read_file)


def read_file(file: str | Path) -> dict[str, Tensor]:
    """The tensors of one file by name.

    Raises:
        ValueError: the file is truncated or its header is not valid.
    """
    file = Path(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            raise _damaged(file, "it seems to be a Git LFS pointer and not the weights: run `git lfs pull`")
        if len(start) < 8 or 8 + length > size:
            raise _damaged(
                file, f"its header claims {length} bytes, but the file has {size}: truncated, or not safetensors"
            )
        if length > MAX_HEADER_BYTES:
            raise _damaged(file, f"its header claims {length} bytes, and {MAX_HEADER_BYTES} is the limit of the format")
        try:
            header = json_files.parse(stream.read(length), "its header", once=True)
        except ValueError as error:
            raise _damaged(file, str(error)) from None
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}

    end = 8 + length  # the tensors must follow one another from here to the end of the file
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, _bytes(item[1]))):
        if tensor.offset != end:
            fault = "overlaps the tensor before it" if tensor.offset < end else "leaves a gap before it"
            raise _damaged(file, f"{name!r:.200} begins at byte {tensor.offset}, not at {end}: it {fault}")
        end += _bytes(tensor)
    if end != size:
        fault = "truncated" if end > size else "bytes that belong to no tensor"
        raise _damaged(file, f"its tensors end at byte {end}, but the file has {size}: {fault}")
    return tensors


def _tensor(file: Path, name: str, entry: Any, start: int) -> Tensor:
    def sizes(value: Any) -> bool:
        known = isinstance(value, list) and len(value) <= MAX_AXES
        return known and all(type(size) is int and 0 <= size < 2**63 for size in value)

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"{name!r:.200} is described by {str(entry)[:80]}, not by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _damaged(
            file, f"{name!r:.200} has the dtype {str(dtype)[:80]!r}, and those that are read are {', '.join(DTYPES)}"
        )
    if not sizes(shape) or not sizes(offsets) or len(offsets) != 2:
        raise _damaged(file, f"{name!r:.200} has the shape {str(shape)[:80]} and the offsets {str(offsets)[:80]}")
    tensor = Tensor(file=file, offset=start + offsets[0], dtype=DTYPES[dtype], shape=tuple(shape))
    span = offsets[1] - offsets[0]
    if _bytes(tensor) != span:
        fault = f"{name!r:.200} of {dtype} {shape} needs {_bytes(tensor)} bytes and its offsets span {span}"
        raise _damaged(file, fault)
    return tensor


def read_shards(index: Path, read_file: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of all the shards that an index names; `read_file` reads one. A name that no shard holds is left out:
    it may be that of a tied tensor, and if it is not, it will be missed.

    Raises:
        FileNotFoundError: the index or a shard is missing.
        ValueError: the index is damaged, names files elsewhere, or contradicts its shards.
    """
    suffix = index.name.removesuffix(".index.json").rpartition(".")[2]
    shard_of = json_files.read(index, once=True).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise _damaged(index, "it has no weight_map from names of tensors to names of files")
    shards = sorted(set(shard_of.values()))
    # A shard is a file's name, not a path: an index must not make us open a file outside its folder.
    foreign = [shard for shard in shards if not re.fullmatch(rf"[\w. ()+-]{{1,200}}\.{suffix}", shard, re.ASCII)]
    if foreign:
        shown = json_files.excerpt(foreign[:8], 200)
        raise _damaged(index, f"a shard must be a .{suffix} file of the same folder, and it names {shown}")
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        listed = json_files.excerpt(", ".join(absent), 1000)
        raise FileNotFoundError(f"{index} names shards that are missing: {listed}. Download or copy them.")

    tensors: dict[str, Tensor] = {}
    faults = []
    for shard in shards:
        inside = read_file(index.parent / shard)
        for name, tensor in inside.items():
            if name not in shard_of:
                faults.append(f"{name} of {shard} is not in the index")
            elif shard_of[name] != shard:
                faults.append(f"{name} is in {shard}, and the index names {shard_of[name]}")
            else:
                tensors[name] = tensor
    if faults:
        rest = f"; and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise _damaged(index, f"it contradicts its shards: {'; '.join(faults[:20])}{rest}")
    return tensors


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * np.dtype(array.dtype).itemsize


def _damaged(file: Path, fault: str) -> ValueError:
    fault = json_files.excerpt(fault, 1000)
    return ValueError(f"{file} cannot be read: {fault}. If it was downloaded or copied, do so again.")


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_folder(folder: str | Path, tensors: Mapping[str, Any], *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Writes the tensors as `model.safetensors`, or as numbered shards and their index where they are larger.

    Only one tensor is in memory at a time: each has a `shape` and a `dtype`, and `np.asarray` reads it. Use a folder of
    `staged`, so that all files appear or none.

    Raises:
        ValueError: a dtype that safetensors does not have, or `max_shard_bytes` below 1.
        FileExistsError: the folder has such files already.
    """
    folder, tensors = Path(folder), aligned(tensors)
    shards = _shards(tensors, max_shard_bytes)
    if len(shards) == 1:
        return write_file(folder / WEIGHTS, tensors)
    shard_of = {}
    for i, names in enumerate(shards, start=1):
        shard = f"model-{i:05}-of-{len(shards):05}.safetensors"
        write_file(folder / shard, {name: tensors[name] for name in names})
        shard_of |= dict.fromkeys(names, shard)
    index = {"metadata": {"total_size": sum(map(_bytes, tensors.values()))}, "weight_map": shard_of}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def aligned(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors in the order in which they are written: wide types first, so that each begins at a multiple of its
    own width, as other libraries require."""
    return dict(sorted(tensors.items(), key=lambda item: -np.dtype(item[1].dtype).itemsize))


def _shards(tensors: Mapping[str, Any], max_bytes: int) -> list[list[str]]:
    if max_bytes < 1:
        raise ValueError(f"max_shard_bytes must be at least 1, not {max_bytes}")
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        filled += _bytes(tensor)
        if filled > max_bytes and shards[-1]:
            shards.append([])
            filled = _bytes(tensor)
        shards[-1].append(name)
    return shards


def write_file(file: Path, tensors: Mapping[str, Any]) -> None:
    # "format" is what transformers looks for before it loads a file.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        dtype, begin = np.dtype(tensor.dtype), end
        if dtype not in NAMES:
            raise ValueError(f"cannot write {name!r} to {file}: safetensors has no {dtype}; it has {', '.join(DTYPES)}")
        end += _bytes(tensor)
        header[name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("xb") as stream:  # never overwrites: a process that has mapped the old file would crash
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            stream.write(np.ascontiguousarray(np.asarray(tensor)).reshape(-1).view(np.uint8))


@contextlib.contextmanager
def staged(folder: str | Path, replaced: Iterable[str] = ()) -> Iterator[Path]:
    """A temporary folder whose files move into `folder`, over the old ones, when the block succeeds.

    No old file is touched until every new one is complete on disk: a full disk, or any other failure, leaves `folder`
    as it was. Weights of an earlier save under other names, such as shards, are removed, so that the two never mix:
    before the new files move, so that a process which is killed meanwhile leaves weights that cannot be read, and none
    that belong to another file. The new ones are then in a folder `.saving-...` in this one.

    Args:
        replaced: names of other old files that are removed with them.

    Raises:
        OSError: the files could not be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"cannot save in {folder}: it is a file. Choose a folder.")
    existed = folder.is_dir()
    folders.make(folder)
    temporary = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        yield temporary
        new = sorted(file.relative_to(temporary) for file in temporary.rglob("*") if file.is_file())
        for file in new:
            _sync(temporary / file)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not existed:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OSError(
                error.errno,
                f"cannot save in {folder}: {error.strerror or error}. The old files are unchanged, and no partial ones"
                " are left; free some space or choose another folder",
            ) from error
        raise
    first = {INDEX, *replaced}  # an index must not describe shards of another save
    left = {file.name for file in folder.iterdir() if OWN_FILES.fullmatch(file.name)} - {file.name for file in new}
    for name in sorted(first | left, key=lambda name: name != INDEX):
        (folder / name).unlink(missing_ok=True)
    for file in sorted(new, key=lambda file: file.name == INDEX):
        (folder / file).parent.mkdir(exist_ok=True)
        (temporary / file).replace(folder / file)
    _sync(folder)
    shutil.rmtree(temporary, ignore_errors=True)


def _sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
