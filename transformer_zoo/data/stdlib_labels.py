"""Labels that the standard library has by itself: the package of a function, and the kinds of its tokens.

Real labels on real text, on every machine, split by file. The kinds of tokens are split as `python_stdlib` is, so that
a model that was pretrained there has not read the validation examples. That side holds too few functions of each
package to measure their classification, so a fifth of each package is held out instead. A model that was pretrained on
`python_stdlib` has read some of those, without their labels.
"""

import ast
import collections
import functools
import io
import keyword
import tokenize
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transformer_zoo.data.stdlib import PythonStdlib, documents, held_out, rank

CLASSES = 20
"""Packages, which are the classes of functions."""

HELD_OUT = 0.2
"""Share of a package's functions that is held out, in whole files; at most."""

KINDS = ("name", "keyword", "operator", "number", "string", "comment")
"""Kinds of Python tokens, whitespace aside."""

Function = dict[str, str]


@functools.cache
def functions() -> tuple[Function, ...]:
    """Every function of the standard library with at least four lines: `path`, `name` (with its classes'), `text`.

    A function within a function is part of it. A text that occurs several times is left out, since it could be on both
    sides of the split. Takes seconds.
    """
    found = [
        {"path": document["path"], "name": name, "text": text}
        for document in documents()
        if document["kind"] == "code"
        for name, text in functions_in(document["text"])
        if text.count("\n") >= 3
    ]
    times = collections.Counter(function["text"] for function in found)
    return tuple(function for function in found if times[function["text"]] == 1)


def package(path: str) -> str:
    """The package at the top that a file belongs to: `json` of json/decoder.py. A module is one by itself."""
    return path.split("/")[0].removesuffix(".py")


@functools.cache
def packages() -> dict[str, frozenset[str]]:
    """The packages with the most functions, in alphabetical order, and the files of each that are held out.

    They are the first in the order of `held_out`'s hash that do not make up more than `HELD_OUT` of the package. One
    of which no file can be held out, such as a module, is not among the packages.
    """
    sizes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for function in functions():
        sizes[package(function["path"])][function["path"]] += 1
    held = {}
    for name in sorted(sizes, key=lambda name: (-sizes[name].total(), name)):
        room, files = HELD_OUT * sizes[name].total(), set()
        for path in sorted(sizes[name], key=rank):
            if sizes[name][path] <= room:
                files.add(path)
                room -= sizes[name][path]
        if files:
            held[name] = frozenset(files)
    return dict(sorted(list(held.items())[:CLASSES]))


def token_spans(text: str) -> list[tuple[int, int, str]]:
    """First character, one past the last, and kind of each token of some Python source, by `tokenize`.

    Raises:
        SyntaxError, tokenize.TokenError: it is not Python.
    """
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    spans = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = _kind(token)
        start, end = (starts[row - 1] + column for row, column in (token.start, token.end))
        if kind is not None and start < end:
            spans.append((start, end, kind))
    return spans


class StdlibFunctions(PythonStdlib):
    """Functions, each with the package that it comes from."""

    name = "stdlib_functions"

    def _info(self) -> tfds.core.DatasetInfo:
        description = "Functions of the standard library, labelled with the package they come from."
        label = tfds.features.ClassLabel()  # its names come with the examples
        return self._described(description, "path", "name", "text", label=label)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        self.info.features["label"].names = list(packages())
        return super()._split_generators(dl_manager)

    def _generate_examples(self, held: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, function in enumerate(functions()):
            label = package(function["path"])
            if label in packages() and (function["path"] in packages()[label]) == held:
                yield f"{number:06d}", {**function, "label": label}


class StdlibTokens(PythonStdlib):
    """Functions, each with the kind of every token in it."""

    name = "stdlib_tokens"

    def _info(self) -> tfds.core.DatasetInfo:
        description = "Functions of the standard library, each with the kind of every token in it."
        span = {"start": tfds.features.Scalar(np.int32), "end": tfds.features.Scalar(np.int32)}
        spans = tfds.features.Sequence(span | {"label": tfds.features.ClassLabel(names=KINDS)})
        return self._described(description, "path", "name", "text", spans=spans)

    def _generate_examples(self, held: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        for number, function in enumerate(functions()):
            if held_out(function["path"]) == held:
                spans = [
                    {"start": start, "end": end, "label": kind} for start, end, kind in token_spans(function["text"])
                ]
                yield f"{number:06d}", {**function, "spans": spans}


def functions_in(source: str) -> Iterator[tuple[str, str]]:
    """The name of each function, after those of its classes, and its text without indentation."""
    lines = source.split("\n")

    def visit(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min(part.lineno for part in (child, *child.decorator_list)) - 1
                indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
                own = (line.removeprefix(indent) for line in lines[first : child.end_lineno])
                yield name + child.name, "\n".join(own) + "\n"
            else:
                yield from visit(child, f"{name}{child.name}." if isinstance(child, ast.ClassDef) else name)

    return visit(ast.parse(source), "")


def _kind(token: tokenize.TokenInfo) -> str | None:
    """None for what is only whitespace."""
    name = tokenize.tok_name[token.type]
    if name == "NAME":
        return "keyword" if keyword.iskeyword(token.string) else "name"
    if name.startswith(("STRING", "FSTRING", "TSTRING")):  # from 3.12 on, without the expressions in braces
        return "string"
    return {"OP": "operator", "NUMBER": "number", "COMMENT": "comment"}.get(name)
