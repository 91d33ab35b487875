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
    jsonl:GLOB[:KEY]                     JSON lines, each an object
    csv:GLOB[:KEY]                       comma-separated values with a header: rows of strings, by column
    tsv:GLOB[:KEY]                       the same, separated by tabs; unmatched quotation marks are text
    parquet:GLOB[:KEY]                   rows of Parquet files
    arrow:PATH[:KEY]                     rows of Arrow files (a GLOB), or of a folder that `save_to_disk` of the library
                                         `datasets` wrote

KEY is the field that is the text, `text` if none is named: `csv:reviews.csv:body`, `jsonl:*.jsonl:translation.en`. It
may be left out where nothing reads a text, or where other settings name the fields.

Text files, JSON lines and separated values may be compressed by gzip or zstd. A path that exists is meant literally,
whatever characters are in it.

Files have no splits of their own: a document is in `train` or `validation` by a hash of its content, or of those of its
fields that an objective reads as inputs, and in `all`. So equal documents are on one side, and more documents move none
of the others. To hash the content a corpus is read once;
where that takes too long, the held-out documents can be a source of their own. One long text file is divided by pieces.

A source can be pickled, and reading it never moves a shared position, so threads may share one.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from transformer_zoo.data import catalogues, column_files, files, stdlib, stdlib_docstrings, stdlib_labels, text_files
from transformer_zoo.data.documents import Document, Source


def source(
    spec: str, split: str | None = "train", *, validation: float = 0.05, data_dir: str | Path | None = None,
    by: Sequence[str] = (),
) -> Source:  # fmt: skip
    """The documents that a name stands for.

    Args:
        spec: a name of one of the module's forms.
        split: `train`, `validation` or `all`; of a data set with splits of its own one of these, for TFDS also a slice
            such as `train[:1%]`. None: all of local files; `validation` where there are splits of its own.
        validation: share of the documents of local files that are held out. Each document's content decides alone,
            except that neither side is empty if there are two different documents or more. With 0 all of them are in
            `train`, with 1 in `validation`.
        data_dir: where TFDS keeps what it prepares; None: TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        by: the fields that decide on which side a document of local files is: those with equal values are on one side,
            whatever else is in them and whatever form the files have. A document that lacks one of these fields goes by
            its whole content, and so do all where no fields are given.

    Raises:
        ValueError: a name of no known form, a corpus without documents, an unknown split or key, files that cannot be
            read.
        FileNotFoundError: a pattern that matches no file; a language that no program on this machine speaks.
    """
    prefix, _, arguments = spec.partition(":")
    form = FORMS.get(prefix)
    if form is None or not form.takes(arguments):
        known = ", ".join(f"{prefix}{form.arguments}" for prefix, form in FORMS.items())
        raise ValueError(f"unknown source {spec!r}: it must be one of {known}")
    return form.open(arguments, split, _Division(validation, tuple(by)), data_dir)


def key_of(spec: str) -> str | None:
    """The KEY at the end of the name of local files. None: there is none, or it is the name of another source."""
    prefix, _, arguments = spec.partition(":")
    form = FORMS.get(prefix)
    return files.pattern_and_key(arguments)[1] if form is not None and form.arguments in KEYED else None


# TFDS


class TfdsSource(Source):
    """A split of a prepared TFDS data set: every feature of an example, text decoded.

    Args:
        folder: where the data set was prepared, down to its version.
        split: one of its splits, or a slice of one.
        key: the feature that holds the text; None: `text`, or else the only text feature. If there are several, as in
            GLUE, none of them is the text.

    Raises:
        ValueError: no such split or feature, or a file format that cannot be read at random.
    """

    own_splits = True
    as_published = True

    def __init__(self, folder: str | Path, split: str, key: str | None = None) -> None:
        self._arguments = (str(folder), split, key)
        builder = tfds.builder_from_directory(str(folder))
        self.name, self.split = builder.info.full_name, split
        features = builder.info.features
        texts = sorted(name for name in features if isinstance(features[name], tfds.features.Text))
        self.key = key or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
        self._features = features
        if key is not None and key not in texts:
            raise ValueError(
                f"{self.name} has no text feature {key!r}: its text features are {', '.join(texts) or 'none'} (all: "
                f"{', '.join(sorted(features))}); choose one with tfds:{self.name.rpartition('/')[0]}:KEY"
            )
        if split == "all":
            split = "+".join(sorted(builder.info.splits))
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
        example = {}
        for name, value in self._examples[index].items():
            try:
                example[name] = _decoded(value)
            except UnicodeDecodeError as error:
                raise ValueError(f"{self.name}, example {index}, {name}: not UTF-8 at byte {error.start}") from None
        return example if self.key is None else example | {"text": example[self.key]}

    def place(self, index: int) -> str:
        """The data set and the example."""
        return f"{self.name}, example {index}"

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


def _decoded(value: Any) -> Any:
    """Bytes, and those in lists and dictionaries, as text."""
    if isinstance(value, bytes):
        return str(value, "utf-8")
    if isinstance(value, dict):
        return {name: _decoded(part) for name, part in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_decoded(part) for part in value]
    return value


def _tfds(name: str, split: str | None, division: "_Division", data_dir: str | Path | None) -> TfdsSource:
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
    return TfdsSource(builder.data_path, split or "validation", keys[0] if keys else None)


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


# Splits of files


class _Division(NamedTuple):
    """How local files are divided, as `source` takes it."""

    validation: float
    by: tuple[str, ...]


def _files(
    kind: Callable[..., Source], found: list[files.File], key: str | None, name: str, split: str | None,
    division: _Division,
) -> Source:  # fmt: skip
    """The documents of a split of local files."""
    validation = division.validation
    if split not in ("train", "validation", "all", None):
        raise ValueError(f"{name} has no split {split!r}: it has train, validation and all")
    if not 0 <= validation <= 1:
        raise ValueError(f"validation={validation}: the share that is held out must lie between 0 and 1")
    states = tuple((file.path.stat().st_size, file.path.stat().st_mtime_ns) for file in found)
    whole = _opened(kind, tuple(found), key, states)
    if not len(whole):
        raise ValueError(f"{name} holds no text: {files.count(len(found), 'file')} without a document")
    if split in ("all", None) or validation == (split == "validation"):
        part = copy.copy(whole)
    elif validation in (0, 1):
        raise ValueError(f"{name}: a share of {validation} that is held out leaves nothing for the split {split!r}")
    else:
        part = _part(whole, split, division, name)
    part.split = split or "all"
    return part


@functools.lru_cache(maxsize=1)
def _opened(kind: Callable[..., Source], found: tuple[files.File, ...], key: str | None, states: Any) -> Source:
    """All documents; the files are looked through once for both splits."""
    return kind(list(found), key)


@functools.lru_cache(maxsize=1)
def _hashes(whole: Any, by: tuple[str, ...]) -> np.ndarray:
    return whole.hashes(by)


def _part(whole: Source, split: str, division: _Division, name: str) -> Source:
    """The documents of a split: those with the smallest hashes are held out. Its fingerprint is of whole documents."""
    validation, by = division
    contents, hashes = _hashes(whole, by).T
    limit = np.uint64(int(validation * 2**64))
    if (hashes == hashes[0]).all():  # one document, or copies of it: pieces of it are held out
        whole = whole.divided(validation)
        contents, hashes = whole.hashes(by).T
        limit = np.sort(hashes)[min(max(1, round(validation * len(hashes))), len(hashes) - 1)]
        if (hashes == limit).all():
            if split == "train":
                return copy.copy(whole)
            same = "one document" if (contents == contents[0]).all() else f"documents with one {' and '.join(by)}"
            raise ValueError(
                f"{name} holds {same}, so none can be held out: give the validation documents as a source of "
                'their own (data.validation_source), or ask for the split "all"'
            )
    held_out = hashes < limit
    if not held_out.any():
        held_out = hashes == hashes.min()
    if held_out.all():
        held_out = hashes != hashes.max()
    chosen = np.flatnonzero(held_out if split == "validation" else ~held_out)
    part = whole.only(chosen)
    part.fingerprint = hashlib.blake2b(contents[chosen].tobytes(), digest_size=8).hexdigest()
    return part


# Forms


KEYED = (":GLOB[:KEY]", ":PATH[:KEY]")
"""The arguments of local files that have fields."""


@dataclasses.dataclass(frozen=True)
class Form:
    """One form of a source's name: a prefix, which is its key in `FORMS`, and arguments."""

    arguments: str
    """Their syntax, in brackets if they may be left out."""
    open: Callable[[str, str | None, _Division, str | Path | None], Source]
    """(arguments, split, division, data_dir), as `source` takes them, to the documents."""

    def takes(self, arguments: str) -> bool:
        """Whether arguments are given where they are needed, and none where there are none."""
        return bool(arguments) if self.arguments.startswith(":") else bool(self.arguments) or not arguments


def _prepared(builder: Callable[..., Any]) -> Form:
    """A data set of our own, which has no arguments."""
    return Form(
        "", lambda _, split, division, data_dir: TfdsSource(stdlib.prepare(data_dir, builder), split or "validation")
    )


def _catalogues(language: str, split: str | None, division: _Division, data_dir: str | Path | None) -> Source:
    builder = functools.partial(catalogues.GettextCatalogues, language=language or "fr")
    return TfdsSource(stdlib.prepare(data_dir, builder), split or "validation")


def _local(kind: Callable[..., Source], keys: bool = True) -> Form:
    """Local files of a kind, whose text is under a key or the whole of a file."""

    def open_files(arguments: str, split: str | None, division: _Division, data_dir: str | Path | None) -> Source:
        pattern, key = files.pattern_and_key(arguments) if keys else (arguments, None)
        return _files(kind, files.find(pattern), key, pattern, split, division)

    return Form(":GLOB[:KEY]" if keys else ":GLOB", open_files)


def _arrow(arguments: str, split: str | None, division: _Division, data_dir: str | Path | None) -> Source:
    """A folder with several splits has its own."""
    path, key = files.pattern_and_key(arguments)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return _files(column_files.ArrowSource, files.find(path), key, path, split, division)
    splits = column_files.saved_dataset(folder)
    if len(splits) == 1:
        return _files(column_files.ArrowSource, *splits.values(), key, path, split, division)
    split = split or "validation"
    if split not in (*splits, "all"):
        raise ValueError(
            f"{path} has no split {split!r}: it has {', '.join(splits)} and all; data.train_split and "
            "data.validation_split name others"
        )
    chosen = [file for name, found in splits.items() if split in (name, "all") for file in found]
    whole = column_files.ArrowSource(chosen, key)
    if not len(whole):
        raise ValueError(f"the split {split!r} of {path} is empty")
    whole.split, whole.own_splits = split, True
    return whole


FORMS: dict[str, Form] = {
    "python_stdlib": _prepared(stdlib.PythonStdlib),
    "stdlib_functions": _prepared(stdlib_labels.StdlibFunctions),
    "stdlib_tokens": _prepared(stdlib_labels.StdlibTokens),
    "stdlib_docstrings": _prepared(stdlib_docstrings.StdlibDocstrings),
    "gettext_catalogues": Form("[:LANGUAGE]", _catalogues),
    "tfds": Form(":NAME[/CONFIG][:VERSION][:KEY]", _tfds),
    "text": _local(text_files.TextSource, keys=False),
    "jsonl": _local(text_files.JsonLinesSource),
    "csv": _local(text_files.TableSource),
    "tsv": _local(text_files.TabSource),
    "parquet": _local(column_files.ParquetSource),
    "arrow": Form(":PATH[:KEY]", _arrow),
}
