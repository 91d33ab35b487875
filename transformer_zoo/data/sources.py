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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_zoo.data import column_files, files, text_files
from transformer_zoo.data.documents import Source


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


def _tfds(name: str, arguments: str = "") -> Form:
    """A data set that TFDS prepares."""

    def open_data_set(arguments: str, split: str | None, division: _Division, data_dir: str | Path | None) -> Source:
        from transformer_zoo.data import tfds_sources  # it takes half a second, which other sources need not wait for

        return tfds_sources.OPEN[name](arguments, split or "validation", data_dir)

    return Form(arguments, open_data_set)


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
    "python_stdlib": _tfds("python_stdlib"),
    "stdlib_functions": _tfds("stdlib_functions"),
    "stdlib_tokens": _tfds("stdlib_tokens"),
    "stdlib_docstrings": _tfds("stdlib_docstrings"),
    "gettext_catalogues": _tfds("gettext_catalogues", "[:LANGUAGE]"),
    "tfds": _tfds("tfds", ":NAME[/CONFIG][:VERSION][:KEY]"),
    "text": _local(text_files.TextSource, keys=False),
    "jsonl": _local(text_files.JsonLinesSource),
    "csv": _local(text_files.TableSource),
    "tsv": _local(text_files.TabSource),
    "parquet": _local(column_files.ParquetSource),
    "arrow": Form(":PATH[:KEY]", _arrow),
}
