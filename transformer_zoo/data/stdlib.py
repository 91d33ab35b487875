"""`python_stdlib`: the standard library of the Python that runs, as a TFDS data set.

About 12 MB of real code and documentation that is on every machine, so there is always something to train on. It is
prepared and read exactly like any other TFDS data set, in ArrayRecord, without TensorFlow.
"""

import contextlib
import hashlib
import io
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

VALIDATION = 0.05
"""Share of the documents that are held out."""

_LEFT_OUT_FOLDERS = frozenset(
    ("test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data", "__pycache__")
)
_LEFT_OUT_FILES = frozenset(("html/entities.py", "msilib/schema.py", "msilib/sequence.py", "stringprep.py"))
"""Generated tables. `encodings` holds nothing else, and the prose of `pydoc_data` is read as prose."""


def held_out(path: str) -> bool:
    """Whether a document belongs to the validation split, by a hash of its relative path: the same on every machine."""
    return rank(path) < VALIDATION


def rank(path: str) -> float:
    """The hash of a document's path, scaled to [0, 1)."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64


def documents(root: Path | None = None) -> Iterator[dict[str, str]]:
    """The documents, in order of their paths: `path` (relative, with slashes), `text`, `kind` (code or prose).

    Args:
        root: the folder of the standard library; None: that of the running Python.

    Raises:
        FileNotFoundError: there are no sources under `root`, as in a Python that keeps its library in a zip file.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    found = False
    for file in sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix()):
        path = file.relative_to(root).as_posix()
        generated = path in _LEFT_OUT_FILES or file.name.startswith("_sysconfigdata")
        if generated or not _LEFT_OUT_FOLDERS.isdisjoint(file.relative_to(root).parent.parts):
            continue
        with tokenize.open(file) as stream:  # in the encoding that the file declares
            text = stream.read()
        found = True
        if text.strip():
            yield {"path": path, "text": text, "kind": "code"}
    if not found:
        raise FileNotFoundError(f"{root} holds no Python sources: this Python has no readable standard library")

    from pydoc_data import topics  # half a megabyte of text, needed only here

    for name, text in sorted(topics.topics.items()):
        yield {"path": f"pydoc_data/topics/{name}", "text": text, "kind": "prose"}


class Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: no server knows this data set, and asking would need a network."""


class Local(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of data on this machine. A subclass generates the examples of either side of the split."""

    url_infos: ClassVar[dict[str, Any]] = {}  # nothing is downloaded; TFDS would look for a table of checksums

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"file_format": "array_record", **kwargs})

    def _described(self, description: str, *texts: str, **others: Any) -> tfds.core.DatasetInfo:
        """What `_info` returns: examples with these fields of text, and others by name."""
        features = {name: tfds.features.Text() for name in texts} | others
        return Info(builder=self, description=description, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {"train": self._generate_examples(held=False), "validation": self._generate_examples(held=True)}


class PythonStdlib(Local):
    """The standard library as a TFDS builder. Its version names the Python, since another Python holds other files."""

    name = "python_stdlib"
    VERSION = tfds.core.Version(f"1.{sys.version_info.minor}.{sys.version_info.micro}")

    def _info(self) -> tfds.core.DatasetInfo:
        version = sys.version.split()[0]
        description = f"The standard library of Python {version}: sources and documentation."
        return self._described(description, "path", "text", "kind")

    def _generate_examples(self, held: bool) -> Iterator[tuple[str, dict[str, str]]]:
        for document in documents():
            if held_out(document["path"]) == held:
                yield document["path"], document


def prepare(data_dir: str | Path | None = None, kind: Callable[..., Local] = PythonStdlib) -> Path:
    """Prepares the data set unless it is there already (seconds), without output, and returns its folder.

    It is written to a temporary folder that is renamed at the end, so several processes may prepare it at once and a
    killed one leaves nothing half done.

    Args:
        data_dir: the TFDS folder; None: the environment's TFDS_DATA_DIR, or else ~/tensorflow_datasets.
        kind: the builder's class.
    """
    builder = kind(data_dir=data_dir)
    # TFDS prints and draws progress bars, which a few seconds do not need.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare_once(builder)
    return Path(builder.data_path)


def prepare_once(builder: tfds.core.DatasetBuilder) -> None:
    """`download_and_prepare`, also where another process has just done the same."""
    config = tfds.download.DownloadConfig(try_download_gcs=False)  # the bucket holds TFRecord, which needs TensorFlow
    try:
        builder.download_and_prepare(download_config=config)
    except OSError:
        if not builder.data_path.exists():  # the last step is a rename, which fails only if the folder has appeared
            raise
