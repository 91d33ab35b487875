"""Files of columns with types as sources: Parquet, Arrow, and folders of the library `datasets`."""

import abc
import collections
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from transformer_zoo import json_files
from transformer_zoo.data.documents import Document
from transformer_zoo.data.files import File, FileSource, as_numbers, digest_of, part_of, text_column


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
            columns[text_column(file.path, texts, schema.names, key)] = file.path
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

    def hashes(self, by: Sequence[str] = ()) -> np.ndarray:
        found = bytearray()
        for batch in self.batches():
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                content = digest_of(ascii(row).encode()).digest()
                found += content + (self.digest_by(by, dict(zip(batch.schema.names, row))) or content)
        return as_numbers([found])


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
        which, row = part_of(self._starts[1:], index)
        return self._files[which], row

    def fields(self, index: int) -> Document:
        group, row = part_of(self._ends, index)
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
        which, row = part_of(self._ends, index)
        batch = self._batches[which][1]
        return {name: column[row].as_py() for name, column in zip(batch.schema.names, batch.columns)}

    def place(self, index: int) -> str:
        """File and row, from 0."""
        which, row = part_of(self._ends, index)
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
