"""JSON files: those that others wrote are read whole or refused in one sentence that names the file; ours are written
whole or not at all."""

import collections
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

LARGEST = 256 * 2**20
"""Bytes of the largest file that is read: ten times those of the largest tokenizers."""
DEEPEST = 64
"""How deep lists and objects may be nested."""


def read(file: Path, kind: type = dict, *, once: bool = False) -> Any:
    """The object in a file, or the list if kind is `list`.

    Args:
        once: no object may have a name twice. False: the last one counts.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: too large a file, not JSON in UTF-8, nested too deeply, or not of this kind.
    """
    if (size := file.stat().st_size) > LARGEST:
        raise ValueError(f"{file} has {size:,} bytes, and at most {LARGEST:,} are read")
    return parse(file.read_bytes(), str(file), kind, once=once)


def parse(text: bytes, name: str, kind: type = dict, *, once: bool = False) -> Any:
    """The same from the bytes of a file; name: what an error calls it."""
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_unique if once else None)
        deep = _deeper(value, DEEPEST)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8: byte {error.start} is {text[error.start]:#04x}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is not JSON: {error}") from None
    except RecursionError:
        deep = True
    except ValueError as error:  # a number of thousands of digits, or a name twice
        raise ValueError(f"{name} is not JSON that can be read: {excerpt(error)}") from None
    if deep:
        raise ValueError(f"{name} is nested more than {DEEPEST} levels deep")
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {describe(value)}, where {describe_kind(kind)} is expected")
    return value


def write(path: epath.Path, text: str) -> None:
    """Writes a file whole or not at all.

    Raises:
        OSError: it could not be written; the old file, if there was one, is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check(settings: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], name: str) -> None:
    """Checks the types of those settings that are there and are not null.

    Args:
        kinds: name of a setting -> the type of its value, or several. `int` does not stand for true and false; `float`
            stands for whole numbers too.
        name: what an error calls the file.

    Raises:
        ValueError: a value of another type. One error lists them all.
    """
    faults = []
    for key, kind in kinds.items():
        value, allowed = settings.get(key), kind if isinstance(kind, tuple) else (kind,)
        if value is None or isinstance(value, bool) and bool in allowed:
            continue
        wide = (*allowed, int) if float in allowed else allowed
        if isinstance(value, bool) or not isinstance(value, wide):
            expected = " or ".join(map(describe_kind, allowed))
            faults.append(f"{excerpt(key)} is {describe(value)}, where {expected} is expected")
    if faults:
        raise ValueError(f"{name}: {excerpt('; '.join(faults), 500)}")


def excerpt(value: Any, length: int = 80) -> str:
    """The text of a value from a file, short enough for an error."""
    text = str(value)
    return text if len(text) <= length else f"{text[:length]}... ({len(text):,} characters)"


def describe(value: Any) -> str:
    """What an error calls a value from a file."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    size = len(value) if isinstance(value, dict | list) else None
    return f"{describe_kind(type(value))} " + (f"({excerpt(repr(value), 60)})" if size is None else f"of {size}")


def describe_kind(kind: type) -> str:
    """What an error calls a type of JSON."""
    names = {
        dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number",
        bool: "true or false", type(None): "null",
    }  # fmt: skip
    return names[kind]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"repeated: {', '.join(name for name, count in names.items() if count > 1)}")
    return found


def _deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(x, levels - 1) for x in inner)
