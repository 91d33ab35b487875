"""Folders of runs, on this machine or in a bucket: `gs://bucket/runs/mine`. Paths are etils' `epath.Path`, as in Orbax:
they read and write local files by themselves and others by fsspec."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "transformer_zoo")
"""What may be made anew at any time. `~` is replaced where the folder is used: there may be no home."""


def folder(name: str | os.PathLike[str]) -> epath.Path:
    """The folder of this name; `~` is the user's.

    Raises:
        ImportError: a bucket, and no package that reads it.
    """
    path = epath.Path(name).expanduser()
    if not is_local(path):
        try:
            path.exists()
        except ImportError as error:
            raise ImportError(f"{path} is in a bucket: pip install 'transformer-zoo[gcs]' ({error})") from error
    return path


def is_local(path: epath.Path) -> bool:
    """Whether a path is one of this machine."""
    return "://" not in str(path)


def make(path: Path) -> None:
    """Makes a folder and those above it.

    Raises:
        OSError: it cannot be made; the message says what is in the way.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((place for place in (path, *path.parents) if os.path.isfile(place)), None)
        why = error.strerror if file is None else "it is a file" if file == path else f"{file} is a file"
        raise OSError(error.errno, f"the folder {path} cannot be made: {why}") from error


def check_file(path: Path, option: str) -> None:
    """Refuses a file that cannot be written, before the work whose result it is for.

    Args:
        option: what gives its name, for the error.

    Raises:
        OSError: its folder does not exist, or may not be written.
        ValueError: it is a folder.
    """
    if os.path.isdir(path):
        raise ValueError(f"{option} {path} is a folder: name a file")
    if not os.path.isdir(path.parent):
        raise FileNotFoundError(f"{option} {path}: there is no folder {path.parent}")
    try:
        if not path.exists():
            path.touch()
            path.unlink()
        elif path.is_file():
            path.open("ab").close()
    except OSError as error:
        raise OSError(error.errno, f"{option} {path}: {error.strerror}") from error


@contextlib.contextmanager
def local(path: epath.Path) -> Iterator[Path]:
    """The same folder or file for what reads local ones only; of one in a bucket a copy, while this is open."""
    if is_local(path):
        yield Path(path)
    else:
        with tempfile.TemporaryDirectory() as copies:
            yield _copied(path, Path(copies) / path.name)


def _copied(path: epath.Path, to: Path) -> Path:
    if path.is_dir():
        to.mkdir()
        for inner in path.iterdir():
            _copied(inner, to / inner.name)
    else:
        to.write_bytes(path.read_bytes())
    return to
