"""Functions and their docstrings: code as the source, its authors' summary as the target.

Split as `python_stdlib` is, by file, so that a model that was pretrained there has read neither side of the validation
examples.
"""

import ast
import collections
import functools
import inspect
import re
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds

from transformer_zoo.data.stdlib import PythonStdlib, documents, held_out
from transformer_zoo.data.stdlib_labels import functions_in

Pair = dict[str, str]


@functools.cache
def docstrings() -> tuple[Pair, ...]:
    """Every function of the standard library with a docstring: `path`, `name` (with its classes'), `source`, its code
    without the docstring, and `target`, the docstring's first paragraph in one line; `name_words` and `source_words`
    are the function's own name, and its code, `as_words`.

    A function within a function is part of it. Code or summaries that occur several times are left out, since they
    could be on both sides of the split, as are functions of only a docstring. Takes seconds.
    """
    found = [
        {
            "path": document["path"],
            "name": name,
            "name_words": as_words(name.rpartition(".")[2]),
            "source": parts[0],
            "source_words": as_words(parts[0]),
            "target": parts[1],
        }  # fmt: skip
        for document in documents()
        if document["kind"] == "code"
        for name, text in functions_in(document["text"])
        if (parts := divided(text)) is not None
    ]
    times = collections.Counter(pair[side] for pair in found for side in ("source", "target"))
    return tuple(pair for pair in found if times[pair["source"]] == times[pair["target"]] == 1)


def divided(text: str) -> tuple[str, str] | None:
    """A function without its docstring, and the docstring's first paragraph; None where it has nothing else, or nothing
    in it, or shares a line with code."""
    (function,) = ast.parse(text).body
    docstring = inspect.cleandoc(ast.get_docstring(function, clean=False) or "")
    if not docstring or len(function.body) == 1:
        return None
    node, lines = function.body[0], text.split("\n")
    first, last = lines[node.lineno - 1].encode(), lines[node.end_lineno - 1].encode()
    if first[: node.col_offset].strip() or last[node.end_col_offset :].strip():
        return None
    summary = " ".join(docstring.split("\n\n")[0].split())
    return "\n".join(lines[: node.lineno - 1] + lines[node.end_lineno :]), summary


def as_words(code: str) -> str:
    """The words of code: its names, divided where an underscore or a capital does, and its numbers, in small letters.
    `def rawDecode_all(self)` is def raw decode all self. That is how code is given to a model that has to speak of it,
    and a name makes a guess at the docstring (LeClair et al. 2019, section 4)."""
    return " ".join(re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", code)).lower()


class StdlibDocstrings(PythonStdlib):
    """Functions without their docstrings, each with what its docstring begins with."""

    name = "stdlib_docstrings"
    VERSION = tfds.core.Version(f"2.{sys.version_info.minor}.{sys.version_info.micro}")  # 1 had no words

    def _info(self) -> tfds.core.DatasetInfo:
        description = "Functions of the standard library, each with the first paragraph of its docstring."
        return self._described(description, "path", "name", "name_words", "source", "source_words", "target")

    def _generate_examples(self, held: bool) -> Iterator[tuple[str, Pair]]:
        for number, pair in enumerate(docstrings()):
            if held_out(pair["path"]) == held:
                yield f"{number:06d}", pair
