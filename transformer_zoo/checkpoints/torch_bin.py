"""`pytorch_model.bin`, read without torch and without executing its pickle.

`torch.save` has had three formats. Each holds storages (one-dimensional arrays) and a pickle of the state dict, whose
tensors are views of them, with an offset, a shape and strides.

    zip     since 1.6: the pickle is the member archive/data.pkl, storage number N the member archive/data/N
    stream  before: five pickles (magic number, version, machine, state dict, keys of the storages), then the storages
    tar     before 0.1.12: the members pickle, tensors and storages

Nothing in a file is trusted. All of it except the numbers is checked before a tensor is read. The tensors are mapped,
so that only the used ones are read. The pickle is interpreted by `pickles`.
Format: torch/serialization.py and torch/_utils.py of PyTorch.
"""

import dataclasses
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from transformer_zoo.checkpoints import pickles, safetensors
from transformer_zoo.checkpoints.safetensors import Tensor

WEIGHTS = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
DTYPES = {
    "Bool": np.dtype(np.bool_),
    "Byte": np.dtype(np.uint8),
    "Char": np.dtype(np.int8),
    "Short": np.dtype(np.int16),
    "Int": np.dtype(np.int32),
    "Long": np.dtype(np.int64),
    "Half": np.dtype(np.float16),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Float": np.dtype(np.float32),
    "Double": np.dtype(np.float64),
    "ComplexFloat": np.dtype(np.complex64),
}
STORAGES = {f"{module}.{name}Storage": dtype for module in ("torch", "torch.cuda") for name, dtype in DTYPES.items()}
TENSORS = {f"{module}.{name}Tensor": dtype for module in ("torch", "torch.cuda") for name, dtype in DTYPES.items()}
MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001


def read_folder(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a folder by name, from `pytorch_model.bin`, or from the shards of `pytorch_model.bin.index.json`.

    Raises:
        FileNotFoundError: the folder holds neither, or a shard is missing.
        ValueError: a file is damaged or refused, or the index and its shards contradict each other.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).is_file():
        return read_file(folder / WEIGHTS)
    return safetensors.read_shards(folder / INDEX, read_file)


def read_file(file: str | Path) -> dict[str, Tensor]:
    """The tensors of one file by name.

    Raises:
        ValueError: the file is damaged, or its pickle has something that weights do not need.
    """
    file = Path(file)
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(512)
            stream.seek(0)
            if start.startswith(b"version "):
                raise ValueError("it seems to be a Git LFS pointer and not the weights: run `git lfs pull`")
            read = _read_zip if start.startswith(b"PK") else _read_tar if start[257:262] == b"ustar" else _read_stream
            state, offsets = read(stream, size)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}, and not a dict of tensors by name")
        return {name: _mapped(file, name, view, offsets) for name, view in state.items()}
    except FAULTS as error:
        raise _refused(file, error) from error


def verify(file: str | Path) -> bool:
    """Compares what a file in the zip format holds with its checksums. False: it has none, as in the older formats.

    Raises:
        ValueError: the file is damaged.
    """
    file = Path(file)
    with file.open("rb") as stream:
        if stream.read(2) != b"PK":
            return False
        try:
            for entry, start in _zip_entries(stream):
                stream.seek(start)
                left, checksum = entry.file_size, 0
                while left and (block := stream.read(min(left, 1 << 24))):
                    left, checksum = left - len(block), zlib.crc32(block, checksum)
                if left or checksum != entry.CRC:
                    raise ValueError(f"its member {entry.orig_filename!r:.200} has another checksum than its bytes")
        except FAULTS as error:
            raise _refused(file, error) from error
    return True


FAULTS = (ValueError, zipfile.BadZipFile, NotImplementedError)


def _refused(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} cannot be read: {str(error)[:500]}. Nothing in it was executed. If it was downloaded or copied, do so"
        " again; else take these weights as safetensors, from where they were published."
    )


# ---- the objects of the pickle ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Storage:
    """`size` numbers from number `start` of the storage `key`."""

    key: Any
    dtype: np.dtype
    size: int
    start: int = 0


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor over a storage; offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        if not (_are_sizes([self.offset]) and _are_sizes(self.shape) and _are_sizes(self.strides)):
            raise ValueError("a tensor has an offset, a shape or strides that are no sizes")
        if len(self.shape) != len(self.strides) or math.prod(self.shape) * self.storage.dtype.itemsize >= 2**63:
            raise ValueError(f"a tensor has the shape {list(self.shape)} and the strides {list(self.strides)}")
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        if 0 not in self.shape and last >= self.storage.size:
            raise ValueError(
                f"a tensor of shape {list(self.shape)} and strides {list(self.strides)} reaches number {last} of the"
                f" storage {self.storage.key!r:.80}, which has {self.storage.size}"
            )


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list | tuple) and all(type(size) is int and 0 <= size < 2**63 for size in values)


def _ordered_dict(*arguments: Any) -> dict[str, Any]:
    if arguments:
        raise ValueError("its pickle makes a collections.OrderedDict that is not empty")
    return {}


def _rebuild_tensor(*arguments: Any) -> View:
    match arguments:  # requires_grad, hooks and metadata may follow
        case (Storage() as storage, offset, tuple(shape), tuple(strides), *_):
            return View(storage, offset, shape, strides)
    raise ValueError("its pickle rebuilds a tensor from something other than storage, offset, shape and strides")


def _rebuild_parameter(*arguments: Any) -> View:
    match arguments:
        case (View() as tensor, *_):
            return tensor
    raise ValueError("its pickle rebuilds a parameter from something other than a tensor")


ALLOWED = STORAGES | {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
}


class _Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self) -> None:
        self.whole: dict[str, Storage] = {}

    def find(self, identifier: Any) -> Storage:
        """The `persistent` of `pickles.load`: ("storage", type, key, device, size), then perhaps a part of it."""
        match identifier:
            case ("storage", np.dtype() as dtype, str(key), _, size, *view) if _are_sizes([size]):
                whole = Storage(key, dtype, size)
            case _:
                raise ValueError("its pickle refers to an object outside of it that is not a storage")
        if self.whole.setdefault(key, whole) != whole:
            raise ValueError(f"its pickle describes the storage {key!r:.80} in two ways")
        match view:
            case [] | [None]:
                return whole
            case [(_, start, size)] if _are_sizes([start, size]) and start + size <= whole.size:
                return Storage(key, dtype, size, start)
        raise ValueError(f"its pickle refers to a part of the storage {key!r:.80} that it does not have")


def _mapped(file: Path, name: str, view: Any, offsets: Mapping[Any, int]) -> Tensor:
    """A tensor in the file. `offsets`: of the storages, in bytes."""
    if not isinstance(view, View):
        raise ValueError(
            f"{name!r:.200} is a {type(view).__name__} and not a tensor. If this is the state of a training run, save "
            "the tensors of its model alone"
        )
    dtype = view.storage.dtype
    return Tensor(
        file=file,
        offset=offsets[view.storage.key] + (view.storage.start + view.offset) * dtype.itemsize,
        dtype=dtype,
        shape=view.shape,
        strides=tuple(stride * dtype.itemsize for stride in view.strides),
    )


# ---- the zip format --------------------------------------------------------------------------------------------------


def _read_zip(stream: BinaryIO, size: int) -> tuple[Any, dict[str, int]]:
    members = _zip_members(stream)
    if "data.pkl" not in members:
        raise ValueError(f"it has no member data.pkl, but {', '.join(sorted(members))[:200] or 'none'}")
    start, end = members.get("byteorder", (0, 0))
    stream.seek(start)
    if (order := stream.read(min(end - start, 80))) not in (b"little", b""):
        raise ValueError(f"its byteorder is {order!r}, and only b'little' is read")
    storages = _Storages()
    start, end = members["data.pkl"]
    stream.seek(start)
    state = pickles.load(stream, end, ALLOWED, storages.find)
    if stream.tell() != end:
        raise ValueError("bytes follow its pickle")
    for key, storage in storages.whole.items():
        start, end = members.get(f"data/{key}", (0, -1))
        if end < start:
            raise ValueError(f"it has no member data/{key[:80]}, which its pickle refers to")
        if end - start != storage.size * storage.dtype.itemsize:
            raise ValueError(
                f"its member data/{key[:80]} has {end - start} bytes, and {storage.size} {storage.dtype} need"
                f" {storage.size * storage.dtype.itemsize}"
            )
    return state, {key: members[f"data/{key}"][0] for key in storages.whole}


def _zip_members(stream: BinaryIO) -> dict[str, tuple[int, int]]:
    """(start, end) of each member, by its name within the folder that contains all of them."""
    members: dict[str, tuple[int, int]] = {}
    folders = set()
    for entry, start in _zip_entries(stream):
        name = entry.orig_filename
        folder, *path = name.split("/")
        folders.add(folder)
        if not path or any(part in ("", ".", "..") for part in (folder, *path)) or re.search(r"[\\\0]", name):
            raise ValueError(f"its member {name!r:.200} lies outside of the archive's folder")
        if "/".join(path) in members:
            raise ValueError(f"its member {name!r:.200} is there twice")
        members["/".join(path)] = start, start + entry.file_size
    if len(folders) > 1:
        raise ValueError(f"its members lie in several folders: {', '.join(sorted(map(repr, folders)))[:200]}")
    return members


def _zip_entries(stream: BinaryIO) -> list[tuple[zipfile.ZipInfo, int]]:
    """The members in their order, each with the offset of its bytes.

    `zipfile` only reads the directory at the end of the file. Each entry must agree with the header before the member
    itself, none may be compressed, and from the beginning to the directory each must follow the one before it at once:
    otherwise a changed length in a header would shift the bytes.
    """
    with zipfile.ZipFile(stream) as archive:
        entries, directory = sorted(archive.infolist(), key=lambda entry: entry.header_offset), archive.start_dir
    found: list[tuple[zipfile.ZipInfo, int]] = []
    end = 0
    for entry in entries:
        name = entry.orig_filename
        if entry.header_offset != end:
            fault = "overlaps the one before it" if entry.header_offset < end else "does not follow the one before it"
            raise ValueError(f"its member {name!r:.200} {fault}")
        stream.seek(entry.header_offset)
        header = stream.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise ValueError(f"its member {name!r:.200} is not where its directory says")
        flags, method = struct.unpack_from("<HH", header, 6)
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        if stream.read(name_length) != name.encode("utf-8" if entry.flag_bits & 0x800 else "cp437"):
            raise ValueError(f"its member {name!r:.200} has another name in its directory than in its own header")
        if (flags | entry.flag_bits) & 1 or method or entry.compress_type or entry.compress_size != entry.file_size:
            raise ValueError(f"its member {name!r:.200} is compressed or encrypted, and torch only stores")
        start = entry.header_offset + 30 + name_length + extra_length
        if start + entry.file_size > directory:
            raise ValueError(f"its member {name!r:.200} overlaps the directory")
        end = start + entry.file_size
        if flags & 8:  # checksum and sizes follow, with sizes of four bytes or of eight
            stream.seek(end)
            following, values = stream.read(24), (entry.CRC, entry.file_size, entry.file_size)
            layouts = ("<4sIQQ", "<4sIII") if entry.file_size < 2**32 else ("<4sIQQ",)
            known = [struct.pack(layout, b"PK\7\10", *values) for layout in layouts]
            if (length := next((len(x) for x in known if following.startswith(x)), None)) is None:
                raise ValueError(f"its member {name!r:.200} is not followed by its checksum and sizes")
            end += length
        found.append((entry, start))
    if end != directory:
        raise ValueError("bytes that belong to no member precede its directory")
    return found


# ---- the older formats -----------------------------------------------------------------------------------------------


def _read_stream(stream: BinaryIO, size: int) -> tuple[Any, dict[str, int]]:
    if stream.read(1) != b"\x80":
        raise ValueError("it has none of the formats that torch.save writes")
    stream.seek(0)
    magic, version, machine = (pickles.load(stream, size, {}) for _ in range(3))
    if (magic, version) != (MAGIC, VERSION):
        raise ValueError("it is a pickle, but not one of those that torch.save writes")
    _check_machine(machine)
    storages = _Storages()
    state = pickles.load(stream, size, ALLOWED, storages.find)
    keys = pickles.load(stream, size, {})
    if not _is_list_of(str, keys) or sorted(keys) != sorted(storages.whole):
        raise ValueError("the storages that it has are not those that its pickle refers to")
    offsets = {key: _storage(stream, size, storages.whole[key]) for key in keys}
    if stream.tell() != size:
        raise ValueError(f"its storages end at byte {stream.tell()}, but the file has {size}")
    return state, offsets


def _storage(stream: BinaryIO, end: int, storage: Storage) -> int:
    """Skips a storage, a count and then its numbers, and returns the offset of the numbers."""
    (count,) = _unpack(stream, end, "<q")
    start = stream.tell()
    if count != storage.size:
        raise ValueError(f"its storage {storage.key!r:.80} has {count} numbers, and its pickle gives {storage.size}")
    if not 0 <= count * storage.dtype.itemsize <= end - start:
        raise ValueError(f"its storage {storage.key!r:.80} has {count} numbers, and no room for them: truncated")
    stream.seek(count * storage.dtype.itemsize, 1)
    return start


def _read_tar(stream: BinaryIO, size: int) -> tuple[Any, dict[int, int]]:
    members = _tar_members(stream, size)
    if absent := {"sys_info", "pickle", "tensors", "storages"} - members.keys():
        raise ValueError(f"it has no member {', '.join(sorted(absent))}: truncated, or none of torch.save")
    start, end = members["sys_info"]
    stream.seek(start)
    _check_machine(pickles.load(stream, end, {}))
    storages, offsets = _tar_storages(stream, *members["storages"])
    tensors = _tar_tensors(stream, *members["tensors"], storages)

    def tensor(identifier: Any) -> View:
        if type(identifier) is not str or identifier not in tensors:
            raise ValueError("its pickle refers to an object outside of it that is not one of its tensors")
        return tensors[identifier]

    start, end = members["pickle"]
    stream.seek(start)
    return pickles.load(stream, end, ALLOWED, tensor), offsets


def _tar_members(stream: BinaryIO, size: int) -> dict[str, tuple[int, int]]:
    """(start, end) of each member. A member takes whole blocks of 512 bytes, after one block for its header."""
    members: dict[str, tuple[int, int]] = {}
    start = 0
    while (header := stream.read(512)).strip(b"\0"):
        name, kind = header[:100].rstrip(b"\0").decode("latin-1"), header[156:157]
        length = re.fullmatch(rb"0*([0-7]{1,11})[ \0]*", header[124:136])
        if not length or kind not in (b"0", b"x", b"\0"):
            raise ValueError(f"its member {name!r} is not a plain file, or has no size")
        start, end = start + 512, start + 512 + int(length[1], 8)
        if end > size:
            raise ValueError(f"it ends in its member {name!r}: truncated")
        if kind != b"x":  # more attributes of the next member, such as its time
            if name in members:
                raise ValueError(f"its member {name!r} is there twice")
            members[name] = start, end
        start = stream.seek(start - (start - end) // 512 * 512)
    return members


def _tar_storages(stream: BinaryIO, start: int, end: int) -> tuple[dict[int, Storage], dict[int, int]]:
    """The storages by number, and the offsets of those that are not part of another. In the file: their count;
    (number, device, type) and the values of each; a list of the parts, (number, number of the whole, start, size)."""
    storages: dict[int, Storage] = {}
    offsets: dict[int, int] = {}
    stream.seek(start)
    for _ in range(_count(pickles.load(stream, end, {}))):
        match pickles.load(stream, end, STORAGES):
            case (int(key), str(), np.dtype() as dtype) if key not in storages:
                (size,) = _unpack(stream, end, "<q")
                storages[key] = Storage(key, dtype, size)
                stream.seek(-8, 1)
                offsets[key] = _storage(stream, end, storages[key])
            case _:
                raise ValueError("one of its storages has no number of its own, no device or no type")
    parts = pickles.load(stream, end, {})
    if not _is_list_of(tuple, parts):
        raise ValueError("it has no list of the storages that are parts of others")
    for part in parts:
        match part:
            case (int(key), int(root), first, size) if (
                key not in storages
                and root in offsets
                and _are_sizes([first, size])
                and first + size <= storages[root].size
            ):
                storages[key] = Storage(root, storages[root].dtype, size, first)
            case _:
                raise ValueError("one of its storages is a part of another that it does not have")
    return storages, offsets


def _tar_tensors(stream: BinaryIO, start: int, end: int, storages: Mapping[int, Storage]) -> dict[str, View]:
    """The tensors by number. In the file: their count; for each (number, number of the storage, type), the number of
    axes, the shape, the strides and the offset."""
    tensors: dict[str, View] = {}
    stream.seek(start)
    for _ in range(_count(pickles.load(stream, end, {}))):
        match pickles.load(stream, end, TENSORS):
            case (int(key), int(storage), np.dtype() as dtype) if (
                str(key) not in tensors and storage in storages and storages[storage].dtype == dtype
            ):
                axes, _ = _unpack(stream, end, "<iI")
                if not 0 <= axes <= pickles.MAX_TUPLE:
                    raise ValueError(f"one of its tensors has {axes} axes")
                *sizes, offset = _unpack(stream, end, f"<{2 * axes + 1}q")
                tensors[str(key)] = View(storages[storage], offset, tuple(sizes[:axes]), tuple(sizes[axes:]))
            case _:
                raise ValueError("one of its tensors has no number of its own, or not a storage of its type")
    return tensors


def _check_machine(machine: Any) -> None:
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("it was not written on a little-endian machine, or does not record it")


def _count(value: Any) -> int:
    if not _are_sizes([value]):
        raise ValueError("it has no valid count of its tensors or storages")
    return value


def _is_list_of(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)


def _unpack(stream: BinaryIO, end: int, layout: str) -> tuple[int, ...]:
    size = struct.calcsize(layout)
    if stream.tell() + size > end:
        raise ValueError("it ends in the middle of its storages or tensors: truncated")
    return struct.unpack(layout, stream.read(size))
