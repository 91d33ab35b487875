"""Data sets of TFDS: any one, and our own, which it prepares from what a machine has."""

import functools
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer_zoo.data import catalogues, stdlib, stdlib_docstrings, stdlib_labels
from transformer_zoo.data.documents import Document, Source


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


def _any(arguments: str, split: str, data_dir: str | Path | None) -> TfdsSource:
    """Prepares the data set if it is not prepared, and opens it."""
    name, *rest = arguments.split(":")
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


def _catalogues(language: str, split: str, data_dir: str | Path | None) -> TfdsSource:
    builder = functools.partial(catalogues.GettextCatalogues, language=language or "fr")
    return TfdsSource(stdlib.prepare(data_dir, builder), split)


def _own(builder: Callable[..., Any]) -> Callable[[str, str, str | Path | None], TfdsSource]:
    """A data set of our own, which has no arguments."""
    return lambda _, split, data_dir: TfdsSource(stdlib.prepare(data_dir, builder), split)


OPEN: dict[str, Callable[[str, str, str | Path | None], TfdsSource]] = {
    "python_stdlib": _own(stdlib.PythonStdlib),
    "stdlib_functions": _own(stdlib_labels.StdlibFunctions),
    "stdlib_tokens": _own(stdlib_labels.StdlibTokens),
    "stdlib_docstrings": _own(stdlib_docstrings.StdlibDocstrings),
    "gettext_catalogues": _catalogues,
    "tfds": _any,
}
"""(arguments, split, data_dir), as `sources.source` takes them, to the documents; by the names of the sources."""
