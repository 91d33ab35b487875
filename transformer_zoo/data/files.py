"""Local files as sources: text, JSON lines, comma- and tab-separated values, Parquet, Arrow.

A source keeps where each document is and reads it when it is asked for. Text is UTF-8, with or without a byte-order
mark. Text files, JSON lines and separated values may be compressed by gzip or zstd, which their first bytes tell; they
are decompressed once, into a cache.
"""

import abc
import array
import codecs
import collections
import contextlib
import copy
import csv
import dataclasses
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transformer_zoo import json_files
from transformer_zoo.data.documents import Document, Record, Source, border, field_of, text_in

CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "transformer_zoo" / "decompressed"
"""Folder of decompressed files. If it cannot be written, the folder for temporary files is used."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
"""Compressions by the first bytes of a file."""

csv.field_size_limit(2**31 - 1)  # Python's own limit, 131,072 characters, is shorter than many texts


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
        record = Record(self.fields(index), partial(self.place, index))
        return record if self._key is None else record | {"text": field_of(record, self._key)}

    def check(self) -> None:
        """Reads the first document, so that a mistyped key shows itself early."""
        if len(self):
            first = self[0]
            if self._key is not None:
                text_in(first, self._key)


class TextSource(FileSource):
    """Text files, each a document, or pieces of them: `text` and `path`. Empty files are left out.

    Raises:
        ValueError: a file is not UTF-8. All are read once, so that the error comes now and not at step 40,000.
    """

    def __init__(self, files: list[File], key: None = None) -> None:
        super().__init__(files)
        sizes = [_check_utf8(file) for file in files]
        spans = [(i, file.start, size, 0) for i, (file, size) in enumerate(zip(files, sizes)) if size > file.start]
        self._spans = np.array(spans, np.int64).reshape(-1, 4)  # file, first byte, end, another piece follows

    def __len__(self) -> int:
        return len(self._spans)

    def fields(self, index: int) -> Document:
        which, start, end, continued = self._spans[index].tolist()
        file = self._files[which]
        with file.open() as stream:
            stream.seek(start)
            text = file.text(stream.read(end - start), start)
        return {"text": text, "path": file.name} | ({"continued": True} if continued else {})

    def place(self, index: int) -> str:
        """The file, and the line if it is a piece of it."""
        file, start = self._files[self._spans[index, 0]], self._spans[index, 1]
        return str(file.path) if start == file.start else f"{file.path}, line {file.line(start)}"

    def only(self, indices: np.ndarray) -> "TextSource":
        """Some of the documents; consecutive pieces are one piece again."""
        spans = self._spans[indices]
        if not len(spans):
            return self._with(spans)
        joined = (spans[1:, 0] == spans[:-1, 0]) & (spans[1:, 1] == spans[:-1, 2])
        firsts = np.flatnonzero(np.append(True, ~joined))
        lasts = np.append(firsts[1:], len(spans)) - 1
        return self._with(np.concatenate([spans[firsts, :2], spans[lasts, 2:]], axis=1))

    def cut(self, size: int) -> "TextSource":
        """Cut where a line ends or else at white space, in its last few thousand bytes. A piece is cut within a word
        only if it has no white space there."""
        spans = []
        for which, start, end, continued in self._spans.tolist():
            with self._files[which].open() if end - start > size else contextlib.nullcontext() as stream:
                while end - start > size:
                    window = min(size // 2, 1 << 12)
                    stream.seek(start + size - window)
                    at = start + size - window + border(stream.read(window))
                    spans.append((which, start, at, 1))
                    start = at
            spans.append((which, start, end, continued))
        return self._with(np.array(spans, np.int64).reshape(-1, 4))

    def divided(self, share: float) -> "TextSource":
        """Twenty pieces, on average, of at least a kibibyte are in the share."""
        return self.cut(max(1 << 10, int((self._spans[:, 2] - self._spans[:, 1]).sum() * share / 20)))

    def _with(self, spans: np.ndarray) -> "TextSource":
        other = copy.copy(self)
        other._spans = spans
        return other

    def hashes(self) -> np.ndarray:
        """uint64[documents]: of the bytes of each."""
        found = []
        for which, start, end, _ in self._spans.tolist():
            digest = _digest()
            with self._files[which].open() as stream:
                stream.seek(start)
                while data := stream.read(min(1 << 20, end - stream.tell())):
                    digest.update(data)
            found.append(digest.digest())
        return _numbers(found)


class LinesSource(FileSource):
    """Documents that are consecutive bytes of files. 16 bytes are kept for each.

    Every file is read once to find them and to check that it is UTF-8.
    """

    def __init__(self, files: list[File], key: str | None = None) -> None:
        super().__init__(files, key)
        self._spans = [self.spans(file) for file in files]  # int64[documents, 2] each: first byte, bytes
        self._ends = np.cumsum([len(spans) for spans in self._spans])
        self.check()

    @abc.abstractmethod
    def spans(self, file: File) -> np.ndarray:
        """int64[documents, 2]: first byte, and number of bytes, of each document of a file."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[File, int, int]:
        """The file that holds a document, its first byte there, and its bytes."""
        which, row = _locate(self._ends, index)
        return self._files[which], *map(int, self._spans[which][row])

    def bytes(self, index: int) -> bytes:
        """The bytes of a document."""
        file, start, size = self.locate(index)
        with file.open() as stream:
            stream.seek(start)
            return stream.read(size)

    def place(self, index: int) -> str:
        """File and line."""
        file, start, _ = self.locate(index)
        return f"{file.path}, line {file.line(start)}"

    def content(self, file: File, data: bytes) -> bytes:
        """What makes a document of these bytes equal to another one."""
        return data.strip()

    def hashes(self) -> np.ndarray:
        """uint64[documents]: of the content of each."""
        found = bytearray()
        for file, spans in zip(self._files, self._spans):
            with file.open() as stream:
                for some in np.array_split(spans, len(spans) // 4096 + 1):
                    for start, size in some.tolist():
                        stream.seek(start)
                        found += _digest(self.content(file, stream.read(size))).digest()
        return _numbers([found])


class JsonLinesSource(LinesSource):
    """JSON lines: the fields of each object. Blank lines are left out.

    Raises:
        ValueError: besides, not JSON, or not an object.
    """

    def spans(self, file: File) -> np.ndarray:
        return line_spans(file)

    def fields(self, index: int) -> Document:
        try:
            fields = json.loads(self.bytes(index))
        except (ValueError, RecursionError) as error:  # nested too deeply
            raise ValueError(f"{self.place(index)}: not JSON: {error}{self._hint(index)}") from None
        if not isinstance(fields, dict):
            kind = type(fields).__name__
            raise ValueError(f"{self.place(index)}: a {kind} where an object is expected{self._hint(index)}")
        return fields

    def _hint(self, index: int) -> str:
        file, first, _ = self.locate(index)
        with file.open() as stream:
            stream.seek(first)
            whole = stream.read(1) == b"["
        return "; if the file is a list of objects, write one object a line instead (jq -c '.[]' does)" if whole else ""


class TableSource(LinesSource):
    """Comma-separated values. The first line is the header, the names of the columns; the fields of a row are strings,
    exactly as they are written, also where they are numbers: whoever reads a label or a number converts it.

    A field in quotation marks may have separators and line ends in it, and a quotation mark where there are two.
    A header with semicolons and without commas tells that semicolons separate, as spreadsheets in many countries write.
    Blank rows are left out, and so are columns without a name, such as a table's row numbers.

    Raises:
        ValueError: besides, no header, columns of one name, a row with more or fewer fields
            than the header, quotation marks that do not match, files with different columns.
    """

    separators = (",", ";")

    def __init__(self, files: list[File], key: str | None = None) -> None:
        self._separators: dict[File, str] = {}
        self._headers: dict[File, list[str]] = {}
        super().__init__(files, key)

    def check(self) -> None:
        """Besides: the columns of all files are the same, and one of them has the name of the key."""
        first, *others = self._files
        named = lambda file: [name for name in self._headers[file] if name]
        columns = named(first)
        for file in others:
            if sorted(named(file)) != sorted(columns):
                raise ValueError(
                    f"{file.path} has the columns {', '.join(named(file))}, and {first.path} has "
                    f"{', '.join(columns)}: the files of a source must have the same ones"
                )
        self._key = _text_column(first.path, columns, columns, self._key)
        super().check()

    def spans(self, file: File) -> np.ndarray:
        header, found, start, end = None, array.array("q"), file.start, file.start

        def lines() -> Iterator[str]:
            nonlocal end
            with file.open() as stream:
                stream.seek(start)
                for line in stream:
                    text, end = file.text(line, end), end + len(line)
                    yield text

        place = lambda: f"{file.path}, line {file.line(start)}"
        self._separators[file] = self._separator(file)
        try:
            for fields in csv.reader(lines(), delimiter=self._separators[file], strict=True):
                if not any(field.strip() for field in fields):
                    pass
                elif header is None:
                    header = self._headers[file] = _header([field.strip() for field in fields], place())
                elif len(fields) != len(header):
                    raise ValueError(
                        f"{place()}: {count(len(fields), 'field')}, where the header has {len(header)} "
                        f"({', '.join(header)}); a field with a separator in it is written in quotation marks"
                    )
                else:
                    found.extend((start, end - start))
                start = end
        except csv.Error as error:
            raise ValueError(
                f"{place()}: {error}; a field that begins with a quotation mark ends with one, and a quotation mark in "
                "it is written twice"
            ) from None
        if header is None:
            raise ValueError(f"{file.path} is empty: its first line must be the header, the names of the columns")
        return np.array(found, np.int64).reshape(-1, 2)

    def _separator(self, file: File) -> str:
        with file.open() as stream:
            stream.seek(file.start)
            header = next((line for line in stream if line.strip()), b"")
        first, *others = self.separators
        return next((other for other in others if other.encode() in header and first.encode() not in header), first)

    def fields(self, index: int) -> Document:
        file, start, _ = self.locate(index)
        text = file.text(self.bytes(index), start)
        (fields,) = csv.reader([text], delimiter=self._separators[file], strict=True)
        return {name: field for name, field in zip(self._headers[file], fields, strict=True) if name}

    def content(self, file: File, data: bytes) -> bytes:
        """Without the columns that have no name."""
        header = self._headers[file]
        if "" not in header:
            return super().content(file, data)
        (fields,) = csv.reader([data.decode()], delimiter=self._separators[file], strict=True)
        return "\0".join(field for name, field in zip(header, fields) if name).encode()


class TabSource(TableSource):
    """Tab-separated values, quoted as comma-separated ones."""

    separators = ("\t",)


def _header(names: list[str], place: str) -> list[str]:
    if repeated := [name for name, count in collections.Counter(names).items() if count > 1 and name]:
        raise ValueError(f"{place}: the header has {', '.join(repeated)} more than once")
    return names


class ColumnsSource(FileSource):
    """Rows of tables whose columns have types. A subclass opens them, and reads some rows of a file at a time.

    Args:
        schemas: of each file.
    """

    def __init__(self, files: list[File], key: str | None, schemas: list[pa.Schema]) -> None:
        super().__init__(files, key)
        columns = {}
        for file, schema in zip(files, schemas):
            texts = [field.name for field in schema if field.type in (pa.string(), pa.large_string())]
            columns[_text_column(file.path, texts, schema.names, key)] = file.path
        if len(columns) > 1:
            found = ", ".join(f"{column} ({path})" for column, path in columns.items())
            raise ValueError(f"the files' texts are in different columns, {found}: name one")
        self._key = next(iter(columns))
        self._features = _features(files[0].path, schemas[0])
        self.check()

    def classes(self, field: str) -> tuple[str, ...] | None:
        """Of a column of class labels, or of lists of them, as the library `datasets` describes it in the file."""
        feature: Any = self._features
        for part in [field] if field in feature else field.split("."):
            feature = feature.get(part) if isinstance(feature, dict) else None
        return _class_names(feature)

    @abc.abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows, in order, some at a time."""

    def hashes(self) -> np.ndarray:
        """uint64[documents]: of the values of each."""
        found = bytearray()
        for batch in self.batches():
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                found += _digest(ascii(row).encode()).digest()
        return _numbers([found])


class ParquetSource(ColumnsSource):
    """Rows of Parquet files: all columns, and `path` and `row`.

    What can be read by itself is a group of rows, so those read last are kept, up to `CACHE` bytes in a process.
    Shuffled reading of a corpus larger than that decodes a group for nearly every document: write small groups then.

    Raises:
        ValueError: besides, not a Parquet file.
    """

    CACHE = 1 << 29

    def __init__(self, files: list[File], key: str | None = None) -> None:
        self._groups: list[tuple[int, int]] = []  # (file, its row group)
        sizes, rows, schemas = [], [], []
        for which, file in enumerate(files):
            try:
                parquet = pq.ParquetFile(file.path)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file.path} is not a Parquet file that can be read: {error}") from None
            with parquet:
                schemas.append(parquet.schema_arrow)
                groups = range(parquet.num_row_groups)
                self._groups += [(which, group) for group in groups]
                sizes += [parquet.metadata.row_group(group).num_rows for group in groups]
                rows.append(parquet.metadata.num_rows)
        self._ends = np.cumsum(sizes)
        self._starts = np.concatenate([[0], np.cumsum(rows)])
        self._cache: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._lock = threading.Lock()
        super().__init__(files, key, schemas)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def _locate(self, index: int) -> tuple[File, int]:
        """The file that holds a document, and its row there."""
        which, row = _locate(self._starts[1:], index)
        return self._files[which], row

    def fields(self, index: int) -> Document:
        group, row = _locate(self._ends, index)
        file, in_file = self._locate(index)
        table = self._group(group)
        columns = {name: column[row].as_py() for name, column in zip(table.column_names, table.columns)}
        return {"path": file.name, "row": in_file} | columns

    def place(self, index: int) -> str:
        """File and row, from 0."""
        file, row = self._locate(index)
        return f"{file.path}, row {row}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        for file in self._files:
            with pq.ParquetFile(file.path) as parquet:
                yield from parquet.iter_batches(1 << 12)

    def _group(self, group: int) -> pa.Table:
        """A group of rows."""
        with self._lock:
            if group not in self._cache:
                which, number = self._groups[group]
                with pq.ParquetFile(self._files[which].path) as parquet:
                    self._cache[group] = parquet.read_row_group(number)
                while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > self.CACHE:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            return self._cache[group]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": collections.OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


class ArrowSource(ColumnsSource):
    """Rows of Arrow files, in either of Arrow's two formats: all columns. The files are mapped and not read, so that
    memory does not grow with them.

    Raises:
        ValueError: besides, not an Arrow file.
    """

    def __init__(self, files: list[File], key: str | None = None) -> None:
        self._arguments = files, key
        self._batches: list[tuple[int, pa.RecordBatch]] = []  # of each: the rows of its file before it
        self._owners: list[File] = []
        schemas = []
        for file in files:
            try:
                mapped = pa.memory_map(str(file.path))
                whole = mapped.read(6) == b"ARROW1"
                mapped.seek(0)
                reader = pa.ipc.open_file(mapped) if whole else pa.ipc.open_stream(mapped)
                batches = [reader.get_batch(i) for i in range(reader.num_record_batches)] if whole else list(reader)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file.path} is not an Arrow file that can be read: {error}") from None
            schemas.append(reader.schema)
            rows = 0
            for batch in batches:
                self._batches.append((rows, batch))
                self._owners.append(file)
                rows += batch.num_rows
        self._ends = np.cumsum([0, *(batch.num_rows for _, batch in self._batches)])[1:]
        super().__init__(files, key, schemas)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def fields(self, index: int) -> Document:
        which, row = _locate(self._ends, index)
        batch = self._batches[which][1]
        return {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns)}

    def place(self, index: int) -> str:
        """File and row, from 0."""
        which, row = _locate(self._ends, index)
        return f"{self._owners[which].path}, row {self._batches[which][0] + row}"

    def batches(self) -> Iterator[pa.RecordBatch]:
        return (batch for _, batch in self._batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def saved_dataset(folder: Path) -> dict[str, list[File]]:
    """The files of each split in a folder that `save_to_disk` of the library `datasets` wrote.

    Raises:
        FileNotFoundError: it is no such folder.
        ValueError: its descriptions cannot be read.
    """
    index = folder / "dataset_dict.json"
    if index.is_file():
        names = json_files.read(index).get("splits") or []
        json_files.check({"splits": names}, {"splits": list}, str(index))
        return {name: [file for found in saved_dataset(folder / name).values() for file in found] for name in names}
    state = folder / "state.json"
    if not state.is_file():
        raise FileNotFoundError(
            f"{folder} holds neither dataset_dict.json nor state.json: it is no folder that save_to_disk wrote; name "
            f"Arrow files by {folder}/*.arrow"
        )
    description = json_files.read(state)
    json_files.check(description, {"_data_files": list, "_split": str}, str(state))
    names = [one.get("filename") for one in description.get("_data_files") or [] if isinstance(one, dict)]
    files = [File(name, folder / name) for name in names if isinstance(name, str)]
    if missing := [str(file.path) for file in files if not file.path.is_file()]:
        raise FileNotFoundError(f"{state} names {', '.join(missing)}, which is not there")
    if not files:
        raise ValueError(f"{state} names no files of data")
    return {description.get("_split") or "train": files}


def _features(file: Path, schema: pa.Schema) -> dict[str, Any]:
    """The features of a table as the library `datasets` describes them, in the file or beside it; or else none."""
    described = (schema.metadata or {}).get(b"huggingface")
    beside = file.parent / "dataset_info.json"
    if described is not None:
        info = json_files.parse(described, f"{file}: the description of its features").get("info")
    else:
        info = json_files.read(beside) if beside.is_file() else None
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of the classes in a feature, in the lists that it holds, or in the `label` of spans."""
    if isinstance(feature, list) and len(feature) == 1:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    names = feature.get("names")
    if feature.get("_type") == "ClassLabel" and isinstance(names, list):
        return tuple(map(str, names))
    return _class_names(feature.get("feature", feature.get("label")))


def _text_column(file: Path, texts: list[str], columns: list[str], key: str | None) -> str | None:
    """The column that is the text: the key, or else `text`, or else the only one with text. None: that is left open.

    Raises:
        ValueError: there is no column for this key.
    """
    if key is None:
        return "text" if "text" in texts else texts[0] if len(texts) == 1 else None
    if key not in columns and key.split(".")[0] not in columns:
        raise ValueError(f"{file} has no column {key!r}: it has {', '.join(columns)}")
    return key


# Content


def _digest(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=8)


def _numbers(digests: Iterable[bytes]) -> np.ndarray:
    """uint64[n]: digests as numbers."""
    return np.frombuffer(b"".join(digests), "<u8")


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
    folder = CACHE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
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


def _check_utf8(file: File, chunk: int = 1 << 22) -> int:
    """The number of bytes in a file of text.

    Raises:
        ValueError: not UTF-8.
    """
    decoder, size = codecs.getincrementaldecoder("utf-8")(), 0
    with file.open() as stream:
        while True:
            data = stream.read(chunk)
            before = len(decoder.getstate()[0])
            try:
                decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise file.not_utf8(size - before + error.start, error.object[error.start]) from None
            if not data:
                return size
            size += len(data)


def line_spans(file: File, chunk: int = 1 << 24) -> np.ndarray:
    """int64[lines, 2]: first byte and number of bytes of each line that is not blank. Checks that all is UTF-8."""
    found, start = [np.empty((0, 2), np.int64)], file.start
    with file.open() as stream:
        stream.seek(start)
        while data := stream.read(chunk) + stream.readline():
            file.text(data, start)
            ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
            if not data.endswith(b"\n"):
                ends = np.append(ends, len(data))
            starts = np.concatenate([[0], ends[:-1]])
            full = np.ones(len(starts), bool)
            first = np.frombuffer(data, np.uint8)[starts]
            maybe = np.flatnonzero(first <= ord(" "))  # only a line that begins with white space may be blank
            full[maybe] = [data[starts[i] : ends[i]].strip() != b"" for i in maybe]
            found.append(np.stack([start + starts, ends - starts], axis=1)[full])
            start += len(data)
    return np.concatenate(found)


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """The part that holds a document, and its index there, from the ends of the parts."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, int(index - (ends[part - 1] if part else 0))


def count(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {what}{'' if number == 1 else 's'}"
