"""What commands print on stderr: an error or a warning is one line."""

import dataclasses
import re
import sys
import warnings
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any


def words(error: BaseException | str) -> str:
    """The text of an error; of one of the system the file and what is wrong with it, without its number."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def by_options(error: BaseException | str, command: Any, others: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text of an error with the settings of a command spelt as its options: --top-k 3 where it has top_k=3, or
    top_k is 3.

    Args:
        command: a dataclass whose fields are the options.
        others: settings of other names -> fields.
    """
    fields = {field.name: field.name for field in dataclasses.fields(command)}
    fields |= {name: field for name, field in others.items() if field in fields}
    flags = {field.name for field in dataclasses.fields(command) if field.type is bool}

    def spelt(found: re.Match[str]) -> str:
        option = f"--{fields[found[1]].replace('_', '-')}"
        return option if found[2] and found[1] in flags else f"{option} {found[2] or ''}"

    # What follows a colon is from a file.
    settings = rf"(?<!: )(?<![\w.])({'|'.join(fields)})(?:=(?:(True\b)|(?=\S))| is (?=\S+: it must))"
    return re.sub(settings, spelt, words(error))


def fail(error: BaseException | str, code: int = 1) -> int:
    """Prints an error that the user can correct; returns the exit code."""
    print(f"error: {words(error)}", file=sys.stderr)
    return code


def show_warnings_plainly() -> None:
    """From now on the warnings of this program are a line each, without the place in its source."""

    def show(message: Warning | str, *_: Any) -> None:
        print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
