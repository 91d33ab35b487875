"""Documents by name. A source is a random-access sequence of dictionaries that hold a document's text under "text",
and other fields, such as labels, under their names.

    python_stdlib                        the standard library of the running Python
    stdlib_functions                     functions of its largest packages, each with the package: `label`
    stdlib_tokens                        its functions, each with the kinds of its tokens: `spans`
    stdlib_docstrings                    its functions without their docstrings, and these: `source`, `target`
                                         (and as words: `source_words`, `name_words`)
    gettext_catalogues[:LANGUAGE]        messages of this machine's programs, English and French: `source`, `target`
    tfds:NAME[/CONFIG][:VERSION][:KEY]   any TFDS data set; KEY is the feature that holds the text, if one does
    text:GLOB                            text files, each a document
    jsonl:GLOB[:KEY]                     JSON lines, each an object that holds its text under KEY ("text")
    parquet:GLOB[:KEY]                   rows of Parquet files

Files have no splits of their own: a document is in `train` or `validation` by a hash of its name, and in `all`. A
source can be pickled, and reading it never moves a shared position, so threads may share one.
"""

import collections
import dataclasses
import functools
import glob
import hashlib
import importlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds

from transformer_zoo.data import catalogues, stdlib, stdlib_docstrings, stdlib_labels

Document = dict[str, Any]


class Source:
    """A sequence of documents. A subclass has their number and reads one."""

    def __len__(self) -> int:
        raise NotImplementedError

    def read(self, index: int) -> Document:
        """The document at an index that is in range."""
        raise NotImplementedError

    def classes(self, field: str) -> tuple[str, ...] | None:
        """The names of the classes in a field of labels, by their numbers; None if they have no names."""
        return None

    def __getitem__(self, index: int) -> Document:
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return self.read(int(index) % len(self))

    def __iter__(self) -> Iterator[Document]:
        return (self.read(index) for index in range(len(self)))


def source(spec: str, split: str = "train", *, validation: float = 0.05, data_dir: str | Path | None = None) -> Source:
    """The documents that a name stands for.

    Args:
        spec: a name of one of the module's forms.
        split: `train`, `validation` or `all`; for TFDS a split that the data set has, or a slice such as `train[:1%]`.
        validation: share of the documents of local files that are held out. Each document's hash decides alone, so more
            files move no document from one side to the other, except that neither side is empty if there are two
            documents or more.
        data_dir: where TFDS keeps what it prepares; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.

    Raises:
        ValueError: a name of no known form, a corpus without text, an unknown split or key, text that is not UTF-8.
        FileNotFoundError: a pattern that matches no file; a language that no program on this machine speaks.
    """
    prefix, _, arguments = spec.partition(":")
    form = FORMS.get(prefix)
    if form is None or not form.takes(arguments):
        known = ", ".join(f"{prefix}{form.arguments}" for prefix, form in FORMS.items())
        raise ValueError(f"unknown source {spec!r}: it must be one of {known}")
    return form.open(arguments, split, validation, data_dir)


# TFDS


class TfdsSource(Source):
    """A split of a prepared TFDS data set: every feature of an example, text decoded.

    Args:
        folder: where the data set was prepared, down to its version.
        split: one of its splits, or a slice of one.
        key: the feature that holds the text; None: `text`, or else the only text feature. If there are several, as in
            GLUE, none of them is the text, and reading `text` of an example is an error.

    Raises:
        ValueError: no such split or feature, or a file format that cannot be read at random.
    """

    def __init__(self, folder: str | Path, split: str, key: str | None = None) -> None:
        self._arguments = (str(folder), split, key)
        builder = tfds.builder_from_directory(str(folder))
        self.name = builder.info.full_name
        features = builder.info.features
        texts = sorted(name for name in features if isinstance(features[name], tfds.features.Text))
        self.key = key or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
        self._features = features
        self._choices = (
            f"its text features are {', '.join(texts) or 'none'} (all: {', '.join(sorted(features))}); "
            f"choose one with tfds:{self.name.rpartition('/')[0]}:KEY"
        )
        if key is not None and key not in texts:
            raise ValueError(f"{self.name} has no text feature {key!r}: {self._choices}")
        if re.split(r"[\[+]", split)[0] not in builder.info.splits:
            raise ValueError(
                f"{self.name} has no split {split!r}: it has {', '.join(sorted(builder.info.splits))}; a part of "
                "one is written like train[:99%] or train[99%:]"
            )
        try:
            self._examples = builder.as_data_source(split=split)
        except NotImplementedError:
            raise ValueError(
                f"{self.name} lies in {folder} as {builder.info.file_format.value}, which cannot be read at random: "
                "prepare it as array_record in another data_dir, tfds.builder(NAME, data_dir=..., "
                'file_format="array_record").download_and_prepare(), or remove that folder'
            ) from None
        if not len(self._examples):
            raise ValueError(f"split {split!r} of {self.name} is empty")

    def __len__(self) -> int:
        return len(self._examples)

    def read(self, index: int) -> Document:
        example = _Example(f"{self.name} leaves open what its text is: {self._choices}")
        for name, value in self._examples[index].items():
            try:
                example[name] = _decoded(value)
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.name}, example {index}, {name}: not UTF-8 at byte {error.start}") from None
        return example if self.key is None else example | {"text": example[self.key]}

    def classes(self, field: str) -> tuple[str, ...] | None:
        """Of a feature of class labels, of a sequence of them, or of spans, which have theirs under `label`.

        Raises:
            ValueError: there is no such feature.
        """
        if field not in self._features:
            raise ValueError(f"{self.name} has no feature {field!r}: it has {', '.join(sorted(self._features))}")
        feature = self._features[field]
        feature = getattr(feature, "feature", feature)  # of each member of a sequence
        if isinstance(feature, tfds.features.FeaturesDict) and "label" in feature:
            feature = feature["label"]
        return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else None

    def __reduce__(self) -> tuple[Callable[..., Source], tuple]:
        return TfdsSource, self._arguments


class _Example(dict):
    """An example's fields. Reading `text` raises ValueError if no feature was chosen for it."""

    def __init__(self, without_text: str) -> None:
        super().__init__()
        self._without_text = without_text

    def __missing__(self, name: str) -> Any:
        raise ValueError(self._without_text) if name == "text" else KeyError(name)


def _decoded(value: Any) -> Any:
    """Bytes, and those in lists and dictionaries, as text."""
    if isinstance(value, bytes):
        return str(value, "utf-8")
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_decoded(part) for part in value]
    return value


def _tfds(name: str, split: str, validation: float, data_dir: str | Path | None) -> TfdsSource:
    """Prepares the data set if it is not prepared, and opens it."""
    name, *rest = name.split(":")
    versions = [part for part in rest if re.fullmatch(r"[\d*]+\.[\d*]+\.[\d*]+", part)]
    keys = [part for part in rest if part not in versions]
    full = ":".join([name, *versions])
    builder = _builder(full, data_dir)
    if not builder.data_path.exists():
        try:
            stdlib.prepare_once(builder)
        except Exception as error:
            raise ValueError(
                f"tfds:{full} is not prepared in {builder.data_path}, and preparing it failed: "
                f"{type(error).__name__}: {error}"
            ) from error
    return TfdsSource(builder.data_path, split, keys[0] if keys else None)


def _builder(name: str, data_dir: str | Path | None) -> tfds.core.DatasetBuilder:
    open_builder = lambda: tfds.builder(name, data_dir=data_dir, file_format="array_record")
    try:
        return open_builder()
    except tfds.core.DatasetNotFoundError:
        # The older data sets become known to TFDS only when their package is imported.
        for package in ("question_answering", "summarization", "text", "text_simplification", "translate"):
            importlib.import_module(f"tensorflow_datasets.{package}")
    except ValueError:  # prepared, and in another format than the one asked for: TfdsSource raises the error
        return tfds.builder(name, data_dir=data_dir)
    try:
        return open_builder()
    except tfds.core.DatasetNotFoundError:
        from transformer_zoo.trees import nearest  # brings jax, which workers that read need not load

        near = nearest(name.split("/")[0].split(":")[0], tfds.list_builders(with_community_datasets=False))
        raise ValueError(f"TFDS knows no data set {name!r}, and none of that name is prepared.{near}") from None


# Files


class TextSource(Source):
    """Text files, each a document: `text` and `path`. Empty files are left out.

    Raises:
        ValueError: a file is not UTF-8. All are read once, so that the error comes now and not at step 40,000.
    """

    def __init__(self, files: list[tuple[str, Path]], key: None = None) -> None:
        self._files = [(name, file) for name, file in files if _utf8(file.read_bytes(), file)]

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> Document:
        name, file = self._files[index]
        return {"text": _utf8(file.read_bytes(), file), "path": name}

    def hashes(self) -> np.ndarray:
        """uint64[documents]: of their names."""
        return np.array([_hash(name) for name, _ in self._files], np.uint64)


class JsonLinesSource(Source):
    """JSON lines: the fields of each object, and its text under `text`. Empty lines are left out.

    Every file is read once to find its lines and to check that it is UTF-8; 16 bytes a line are kept.

    Raises:
        ValueError: not UTF-8, not JSON, not an object, no such key, no string under it; the file and line are named.
    """

    def __init__(self, files: list[tuple[str, Path]], key: str | None) -> None:
        self._files, self._key = files, key or "text"
        self._lines = [_lines(file) for _, file in files]  # int64[lines, 2] each: first byte, bytes
        self._ends = np.cumsum([len(lines) for lines in self._lines])
        if len(self):
            self.read(0)  # a mistyped key shows itself here

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, index: int) -> Document:
        which, row = _locate(self._ends, index)
        file, (start, size) = self._files[which][1], self._lines[which][row]
        with file.open("rb") as stream:
            stream.seek(start)
            line = stream.read(size)
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:  # nested too deeply
            raise ValueError(f"{_place(file, start)}: not JSON: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{_place(file, start)}: a {type(fields).__name__} where an object is expected")
        if not isinstance(fields.get(self._key), str):
            wrong = "is not a string" if self._key in fields else "is missing"
            raise ValueError(
                f"{_place(file, start)}: {self._key!r} {wrong}; the object has {', '.join(fields) or 'no keys'} "
                "(choose one with jsonl:GLOB:KEY)"
            )
        return {**fields, "text": fields[self._key]}

    def hashes(self) -> np.ndarray:
        """uint64[documents]: of their files' names and rows."""
        return _row_hashes(self._files, [len(lines) for lines in self._lines])


class ParquetSource(Source):
    """Rows of Parquet files: `text`, `path` and `row`.

    What can be read by itself is a group of rows, so those read last are kept, up to `CACHE` bytes in a process.
    Shuffled reading of a corpus larger than that decodes a group for nearly every document: write small groups then.

    Raises:
        ValueError: not a Parquet file, no such column, or none that is clearly the text; a row without text.
    """

    CACHE = 1 << 29

    def __init__(self, files: list[tuple[str, Path]], key: str | None) -> None:
        self._files = files
        self._groups: list[tuple[int, int]] = []  # (file, its row group)
        sizes, self._rows = [], []
        columns = set()
        for which, (_, file) in enumerate(files):
            try:
                parquet = pq.ParquetFile(file)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"{file} is not a Parquet file that can be read: {error}") from None
            with parquet:
                columns.add(_text_column(file, parquet.schema_arrow, key))
                groups = range(parquet.num_row_groups)
                self._groups += [(which, group) for group in groups]
                sizes += [parquet.metadata.row_group(group).num_rows for group in groups]
                self._rows.append(parquet.metadata.num_rows)
        if len(columns) > 1:
            raise ValueError(f"the files' texts are in different columns, {', '.join(sorted(columns))}: name one")
        self._column = columns.pop()
        self._ends = np.cumsum(sizes)
        self._starts = np.concatenate([[0], np.cumsum(self._rows)])
        self._cache: collections.OrderedDict[int, pa.ChunkedArray] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> Document:
        group, row = _locate(self._ends, index)
        name, file = self._files[self._groups[group][0]]
        in_file = int(index - self._starts[self._groups[group][0]])
        text = self._group(group)[row].as_py()
        if text is None:
            raise ValueError(f"{file}, row {in_file}: {self._column!r} holds no text (null)")
        return {"text": text, "path": name, "row": in_file}

    def _group(self, group: int) -> pa.ChunkedArray:
        """The text column of a group of rows."""
        with self._lock:
            if group not in self._cache:
                which, number = self._groups[group]
                with pq.ParquetFile(self._files[which][1]) as parquet:
                    self._cache[group] = parquet.read_row_group(number, [self._column]).column(0)
                while len(self._cache) > 1 and sum(column.nbytes for column in self._cache.values()) > self.CACHE:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            return self._cache[group]

    def hashes(self) -> np.ndarray:
        """uint64[documents]: of their files' names and rows."""
        return _row_hashes(self._files, self._rows)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": collections.OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def _text_column(file: Path, schema: pa.Schema, key: str | None) -> str:
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    column = key or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if column in texts:
        return column
    wrong = f"has no text column {key!r}" if key else "leaves open which column is the text"
    raise ValueError(
        f"{file} {wrong}: its text columns are {', '.join(texts) or 'none'} (all: {', '.join(schema.names)}); "
        "choose one with parquet:GLOB:KEY"
    )


# Splits of files


class Part(Source):
    """Some documents of another source."""

    def __init__(self, whole: Source, indices: np.ndarray) -> None:
        self._whole, self._indices = whole, indices

    def __len__(self) -> int:
        return len(self._indices)

    def classes(self, field: str) -> tuple[str, ...] | None:
        """As in the whole."""
        return self._whole.classes(field)

    def read(self, index: int) -> Document:
        return self._whole.read(int(self._indices[index]))


def _part(whole: Any, split: str, validation: float, spec: str) -> Source:
    """The documents of a split: those with the smallest hashes are held out."""
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation}: the share that is held out must lie between 0 and 1")
    if len(whole) == 1:
        if split == "validation":
            raise ValueError(
                f"{spec} holds one document, so none can be held out: give the validation documents as a source of "
                'their own, or ask for the split "all"'
            )
        return whole
    hashes = whole.hashes()
    held_out = hashes < np.uint64(int(validation * 2**64))
    held_out[hashes.argmin()], held_out[hashes.argmax()] = True, False
    return Part(whole, np.flatnonzero(held_out if split == "validation" else ~held_out))


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _row_hashes(files: list[tuple[str, Path]], rows: list[int]) -> np.ndarray:
    """uint64[documents]: of a file's name and a row's number, by the finaliser of splitmix64 (Steele et al. 2014)."""
    parts = []
    for (name, _), count in zip(files, rows):
        x = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(_hash(name))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        parts.append(x ^ (x >> np.uint64(31)))
    return np.concatenate(parts)


# Files, lines, rows


def _files(pattern: str) -> list[tuple[str, Path]]:
    """The files that a pattern matches, in order, each with its name below the pattern's fixed folder.

    The name, unlike the path, is the same wherever the corpus is put.
    """
    pattern = str(Path(pattern).expanduser())
    files = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())
    if not files:
        folder = f" It is a folder: did you mean {pattern}/**/*?" if Path(pattern).is_dir() else ""
        raise FileNotFoundError(f"no file matches {pattern!r}.{folder}")
    fixed = Path(pattern).parts
    wild = next((i for i, part in enumerate(fixed) if glob.has_magic(part)), len(fixed) - 1)
    return [(file.relative_to(Path(*fixed[:wild])).as_posix(), file) for file in files]


def _pattern_and_key(rest: str) -> tuple[str, str | None]:
    """Takes GLOB:KEY apart; a colon that belongs to an existing file's name is not a separator."""
    pattern, colon, key = rest.rpartition(":")
    if not colon or "/" in key or glob.glob(str(Path(rest).expanduser()), recursive=True):
        return rest, None
    return pattern, key


def _utf8(data: bytes, file: Path, start: int = 0) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: byte {start + error.start} is 0x{data[error.start]:02x}") from None


def _lines(file: Path, chunk: int = 1 << 24) -> np.ndarray:
    """int64[lines, 2]: first byte and number of bytes of each line that is not empty. Checks that all is UTF-8."""
    found, start = [np.empty((0, 2), np.int64)], 0
    with file.open("rb") as stream:
        while data := stream.read(chunk) + stream.readline():
            _utf8(data, file, start)
            ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
            if not data.endswith(b"\n"):
                ends = np.append(ends, len(data))
            starts = np.concatenate([[0], ends[:-1]])
            full = ends - starts > 2
            full[~full] = [data[i:j].strip() != b"" for i, j in zip(starts[~full], ends[~full])]
            found.append(np.stack([start + starts, ends - starts], axis=1)[full])
            start += len(data)
    return np.concatenate(found)


def _locate(ends: np.ndarray, index: int) -> tuple[int, int]:
    """The part that holds a document, and its index there, from the ends of the parts."""
    part = int(np.searchsorted(ends, index, side="right"))
    return part, int(index - (ends[part - 1] if part else 0))


def _place(file: Path, start: int) -> str:
    """`file, line n` for an error message."""
    with file.open("rb") as stream:
        lines = stream.read(int(start)).count(b"\n")
    return f"{file}, line {lines + 1}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# Forms


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of a source's name: a prefix, which is its key in `FORMS`, and arguments."""

    arguments: str
    """Their syntax, in brackets if they may be left out."""
    open: Callable[[str, str, float, str | Path | None], Source]
    """(arguments, split, validation, data_dir), as `source` takes them, to the documents."""

    def takes(self, arguments: str) -> bool:
        """Whether arguments are given where they are needed, and none where there are none."""
        return bool(arguments) if self.arguments.startswith(":") else bool(self.arguments) or not arguments


def _prepared(builder: Callable[..., Any]) -> Form:
    """A data set of our own, which has no arguments."""
    return Form("", lambda _, split, validation, data_dir: TfdsSource(stdlib.prepare(data_dir, builder), split))


def _catalogues(language: str, split: str, validation: float, data_dir: str | Path | None) -> Source:
    builder = functools.partial(catalogues.GettextCatalogues, language=language or "fr")
    return TfdsSource(stdlib.prepare(data_dir, builder), split)


def _local(kind: Callable[[list[tuple[str, Path]], str | None], Any], keys: bool = True) -> Form:
    """Local files of a kind, whose text is under a key or the whole of a file."""

    def open_files(arguments: str, split: str, validation: float, data_dir: str | Path | None) -> Source:
        if split not in ("train", "validation", "all"):
            raise ValueError(f"{arguments} has no split {split!r}: it has train, validation and all")
        pattern, key = _pattern_and_key(arguments) if keys else (arguments, None)
        files = _files(pattern)
        whole = kind(files, key)
        if not len(whole):
            raise ValueError(f"{pattern} holds no text: {_count(len(files), 'file')} without a document")
        return whole if split == "all" else _part(whole, split, validation, pattern)

    return Form(":GLOB[:KEY]" if keys else ":GLOB", open_files)


FORMS: dict[str, Form] = {
    "python_stdlib": _prepared(stdlib.PythonStdlib),
    "stdlib_functions": _prepared(stdlib_labels.StdlibFunctions),
    "stdlib_tokens": _prepared(stdlib_labels.StdlibTokens),
    "stdlib_docstrings": _prepared(stdlib_docstrings.StdlibDocstrings),
    "gettext_catalogues": Form("[:LANGUAGE]", _catalogues),
    "tfds": Form(":NAME[/CONFIG][:VERSION][:KEY]", _tfds),
    "text": _local(TextSource, keys=False),
    "jsonl": _local(JsonLinesSource),
    "parquet": _local(ParquetSource),
}
