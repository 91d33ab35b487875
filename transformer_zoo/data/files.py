"""Local files, and what all sources of them have in common.

A source keeps where each document is and reads it when it is asked for. Text is UTF-8, with or without a byte-order
mark. Files of text may be compressed by gzip or zstd, which their first bytes tell; they are decompressed once, into a
cache.
"""

import abc
import codecs
import dataclasses
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from transformer_zoo import folders
from transformer_zoo.data.documents import Document, Record, Source, field_of, text_in

CACHE = folders.CACHE / "decompressed"
"""Folder of decompressed files, which may be deleted at any time between runs. If it cannot be written, the folder for
temporary files is used."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compressions by the first bytes of a file."""


@dataclasses.dataclass(frozen=True)
class File:
    """A file of a source."""

    name: str
    """Its name below the fixed folder of the pattern that it matched: the same wherever the files are put."""
    path: Path

    @functools.cached_property
    def plain(self) -> Path:
        """The file, or what it decompresses to.

        Raises:
            ValueError: damaged compressed data.
        """
        return _decompressed(self.path)

    def open(self) -> BinaryIO:
        """The decompressed bytes."""
        return self.plain.open("rb")

    def part(self, start: int, size: int) -> bytes:
        """Some of the decompressed bytes. Without a buffer, which costs more than to read a line."""
        with open(self.plain, "rb", buffering=0) as stream:
            stream.seek(start)
            return stream.read(size)

    @functools.cached_property
    def start(self) -> int:
        """Bytes of the byte-order mark."""
        with self.open() as stream:
            return len(codecs.BOM_UTF8) if stream.read(3) == codecs.BOM_UTF8 else 0

    def text(self, data: bytes, at: int = 0) -> str:
        """The text of bytes that begin at a position of the file.

        Raises:
            ValueError: not UTF-8.
        """
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.not_utf8(at + error.start, data[error.start]) from None

    def not_utf8(self, at: int, byte: int) -> ValueError:
        with self.open() as stream:
            utf16 = stream.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        hint = "it begins like UTF-16: save it as UTF-8" if utf16 else "save it as UTF-8"
        return ValueError(f"{self.path} is not UTF-8: byte {at} is 0x{byte:02x}, line {self.line(at)}; {hint}")

    def lines(self) -> Iterator[tuple[int, int, str]]:
        """First byte, end and text of each line.

        Raises:
            ValueError: not UTF-8.
        """
        end = self.start
        with self.open() as stream:
            stream.seek(end)
            for line in stream:
                start, end = end, end + len(line)
                yield start, end, self.text(line, start)

    def line(self, at: int) -> int:
        """The number of the line, from 1, that holds a byte."""
        with self.open() as stream:
            return stream.read(int(at)).count(b"\n") + 1


class FileSource(Source, abc.ABC):
    """Documents in files.

    Args:
        files: at least one.
        key: the field that is the text, which is then also under `text`; None: `text`, if there is such a field. In
            tables a single column of text is the text whatever its name is.

    Raises:
        ValueError: files that cannot be read as this form; no text under the key. File and line are named.
    """

    def __init__(self, files: list[File], key: str | None = None) -> None:
        self._files, self._key = files, key

    @abc.abstractmethod
    def fields(self, index: int) -> Document:
        """The fields of a document as they are in the file."""

    def read(self, index: int) -> Document:
        return self._keyed(Record(self.fields(index), partial(self.place, index)))

    def _keyed(self, fields: Document) -> Document:
        """With what is under the key as the text."""
        return fields if self._key is None else fields | {"text": field_of(fields, self._key)}

    @abc.abstractmethod
    def hashes(self, by: Sequence[str] = ()) -> np.ndarray:
        """uint64[documents, 2]: of the content of each document, and of the fields by which a split divides them. A
        document that lacks one of these, or a source of texts, is divided by its content."""

    def digest_by(self, by: Sequence[str], fields: Document) -> bytes | None:
        """A hash of the values of these fields of a document, the same in all forms of files; None if it lacks one."""
        try:
            document = self._keyed(fields)
            values = [field_of(document, name) for name in by]
        except ValueError:
            return None
        return digest_of(json.dumps(values, default=repr).encode()).digest() if by else None

    def check(self) -> None:
        """Reads the first document, so that a mistyped key shows itself early."""
        if len(self):
            first = self[0]
            if self._key is not None and field_of(first, self._key) is not None:  # whoever needs a text refuses null
                text_in(first, self._key)


# Names of files


def find(pattern: str) -> list[File]:
    """The files that a pattern matches, in order.

    `~` is the home folder. A folder or file that exists is meant literally, whatever characters its name has.

    Raises:
        FileNotFoundError: there are none.
    """
    whole = Path(pattern).expanduser()
    if whole.is_file():
        return [File(whole.name, whole)]
    if whole.is_dir():
        raise FileNotFoundError(f"no file matches {str(whole)!r}. It is a folder: did you mean {whole}/**/*?")
    folder = next(folder for folder in whole.parents if folder.exists())
    spelt = os.path.join(glob.escape(str(folder)), whole.relative_to(folder))
    files = sorted(Path(match) for match in glob.glob(spelt, recursive=True) if Path(match).is_file())
    if not files:
        raise FileNotFoundError(f"no file matches {str(whole)!r}")
    return [File(file.relative_to(folder).as_posix(), file) for file in files]


def pattern_and_key(rest: str) -> tuple[str, str | None]:
    """Takes GLOB:KEY apart; a colon that belongs to an existing file's name is not a separator."""
    pattern, colon, key = rest.rpartition(":")
    if not colon or "/" in key or os.sep in key or Path(rest).expanduser().exists():
        return rest, None
    try:
        find(rest)
    except FileNotFoundError:
        return pattern, key
    return rest, None


# Parts of sources


def text_column(file: Path, texts: list[str], columns: list[str], key: str | None) -> str | None:
    """The column that is the text: the key, or else `text`, or else the only one with text. None: that is left open.

    Raises:
        ValueError: there is no column for this key.
    """
    if key is None:
        return "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if key not in columns and key.split(".")[0] not in columns:
        raise ValueError(f"{file} has no column {key!r}: it has {', '.join(columns)}")
    return key


def part_of(ends: np.ndarray, index: int) -> tuple[int, int]:
    """The part that holds a document, and its index there, from the ends of the parts."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, int(index - (ends[part - 1] if part else 0))


def digest_of(data: bytes = b"") -> Any:
    """A hash of 8 bytes, which more bytes may be added to."""
    return hashlib.blake2b(data, digest_size=8)


def as_numbers(digests: Iterable[bytes]) -> np.ndarray:
    """uint64[documents, 2]: digests, two of each document, as numbers."""
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def count(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


# Bytes of files


def _decompressed(path: Path) -> Path:
    """The file itself if it is not compressed, or else what it decompresses to, in the cache."""
    with path.open("rb") as stream:
        head = stream.read(4)
    kind = next((kind for first, kind in COMPRESSED.items() if head.startswith(first)), None)
    if kind is None:
        return path
    state = path.stat()
    name = hashlib.blake2b(f"{path.resolve()} {state.st_size} {state.st_mtime_ns}".encode(), digest_size=16).hexdigest()
    try:
        folder = CACHE.expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except (OSError, RuntimeError):  # there is no home
        writable = False
    if not writable:
        folder = Path(tempfile.gettempdir()) / f"transformer_zoo-{os.getuid() if hasattr(os, 'getuid') else 'files'}"
        folder.mkdir(exist_ok=True)
    target, partial_file = folder / name, folder / f"{name}.{os.getpid()}"
    if target.exists():
        return target
    try:
        with pa.input_stream(str(path), compression=kind) as source, partial_file.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        os.replace(partial_file, target)
    except OSError as error:
        if error.errno is not None:  # a full disk, for example
            raise
        raise ValueError(f"{path} begins like {kind}, and cannot be decompressed: {error}") from None
    finally:
        partial_file.unlink(missing_ok=True)
    return target
